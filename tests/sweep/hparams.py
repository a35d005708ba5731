"""What TensorBoard's HPARAMS tab shows, asked of the plugin itself."""

from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, backend_context, get_experiment, list_session_groups

Values = dict[str, Any]


def compared(folder: Path) -> dict[str, tuple[Values, Values]]:
    """For each run under `folder` that the tab lists: its options and its metrics."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    context = backend_context.Context(TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(folder))))
    experiment = get_experiment.Handler(RequestContext(), context, "", api_pb2.GetExperimentRequest()).run()
    wanted = api_pb2.ListSessionGroupsRequest(
        allowed_statuses=[api_pb2.STATUS_SUCCESS, api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_RUNNING],
        col_params=[api_pb2.ColParams(metric=info.name) for info in experiment.metric_infos],
        start_index=0,
        slice_size=100,
    )
    listed = list_session_groups.Handler(RequestContext(), context, "", wanted).run()
    shown = {}
    for group in listed.session_groups:
        for session in group.sessions:
            options = {name: getattr(value, value.WhichOneof("kind")) for name, value in group.hparams.items()}
            metrics = {one.name.tag: one.value for one in session.metric_values}
            shown[session.name] = (options, metrics)
    return shown
