"""The kernels of a seat: what JupyterLab's server starts, behind the server where limits hit."""

from __future__ import annotations

from jupyter_server.services.kernels.kernelmanager import ServerKernelManager

from course.room.behind_server import BEHIND


class SeatKernelManager(ServerKernelManager):
    """Starts every kernel by `behind_server`, whatever its language."""

    def format_kernel_cmd(self, extra_arguments: list[str] | None = None) -> list[str]:
        """The kernel's command line."""
        return [*BEHIND, *super().format_kernel_cmd(extra_arguments)]
