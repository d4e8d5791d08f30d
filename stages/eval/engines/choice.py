"""Which engine answers: the one that the command line names, or the model that the chain made."""

from __future__ import annotations

from stages.core.artifact import fingerprint_model, read_manifest, require_artifact
from stages.core.cli import Options
from stages.core.errors import StageError
from stages.eval.engines import Engine
from stages.eval.engines.endpoint import Endpoint, check_address
from stages.eval.engines.gone import GoneModel, find_scored_model
from stages.eval.engines.local import LocalEngine
from stages.eval.engines.recorded import Recorded
from stages.eval.engines.transport import Transport
from stages.eval.request import Request
from stages.eval.store import kept_models, replies_root


def choose_engine(options: Options, request: Request) -> Engine:
    """What answers. Raises StageError when there is no model, and for an address that is none."""
    if request.replies is not None:
        return Recorded(request.replies)
    if request.endpoint is not None:
        return _reach_server(request.endpoint, options, request)
    folder = options.input("quantize")
    if not folder.exists() and (scored := find_scored_model(options)) is not None:
        return GoneModel(scored, folder, options.advice("quantize"))
    if options.data is not None and not folder.exists():
        raise StageError(
            f"no folder {folder}: --data takes a model, the output of nox -s quantize or fuse, or your own"
        )
    # A folder that fuse did not write has its own template, unless the preset names another.
    setup = options.preset.model
    batch = options.preset.eval.completion_batch
    if (folder / "config.json").is_file() and read_manifest(folder) is None:
        return LocalEngine(folder, fingerprint_model(folder), batch, setup.dialect, setup)
    made = require_artifact(folder, "quantize", options.advice("quantize", ("fuse",)), also=("fuse",))
    return LocalEngine(folder, made.content, batch, setup.dialect, template=made.template)


def _reach_server(address: str, options: Options, request: Request) -> Endpoint:
    transport = Transport(check_address(address), request.timeout)
    return Endpoint(
        transport,
        options.preset.model.dialect,
        request.served_model,
        request.concurrency,
        kept_models(replies_root(options), transport.url),
    )
