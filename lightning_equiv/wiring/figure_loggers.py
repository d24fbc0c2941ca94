"""Hand a matplotlib figure to whatever logger takes one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def log_figure(logger: Any, tag: str, figure: Figure, step: int) -> bool:
    """Log a figure by what a logger offers; False where it takes none, such as CSVLogger. On rank zero only.

    Loggers are known by their methods: `logger.log_image(key=, images=, step=)` of WandbLogger gets an array,
    `logger.experiment.add_figure` of TensorBoardLogger and `logger.experiment.log_figure` of MLFlowLogger (whose logger
    has a `run_id`, and where each step is a file) and CometLogger get the figure.

    Args:
        logger: of the Trainer.
        tag: what the figure is called.
        figure: of matplotlib.
        step: the Trainer's global step.
    """
    if callable(getattr(logger, "log_image", None)):
        logger.log_image(key=tag, images=[_pixels(figure)], step=step)
        return True
    experiment = getattr(logger, "experiment", None)
    if callable(getattr(experiment, "add_figure", None)):
        experiment.add_figure(tag, figure, global_step=step)  # type: ignore[union-attr]
        return True
    if callable(getattr(experiment, "log_figure", None)):
        if hasattr(logger, "run_id"):
            experiment.log_figure(logger.run_id, figure, f"{tag}/{step:08d}.png")  # type: ignore[union-attr]
        else:
            experiment.log_figure(figure_name=tag, figure=figure, step=step)  # type: ignore[union-attr]
        return True
    return False


def _pixels(figure: Figure) -> Any:
    """(height, width, 3) bytes."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
