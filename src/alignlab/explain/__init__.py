"""What a model makes of one text: loss, next tokens, layers, attention and attribution, as data and as a page."""
