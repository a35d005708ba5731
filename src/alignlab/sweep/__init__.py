"""Many runs: jobs of a sweep that fail, stop and go on one by one, and tables and figures that compare runs."""
