"""The report: one HTML page without script or network, from the document of a profile (`build.profile_document`)."""

from mote_runtime.profile.report.page import render

__all__ = ["render"]
