"""Running a network over slices and scans: `from inference import Upscaler`."""

from inference.upscaler import Upscaler

__all__ = ["Upscaler"]
