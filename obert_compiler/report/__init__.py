"""What a compile did, as figures (report.json) and as a page to read (report.html)."""

from obert_compiler.report.build import build_report, describe_model, write_report
from obert_compiler.report.sites import SiteRow, part_bytes, site_rows
from obert_compiler.report.summary import SummaryRow, summary_rows

__all__ = [
    "SiteRow",
    "SummaryRow",
    "build_report",
    "describe_model",
    "part_bytes",
    "site_rows",
    "summary_rows",
    "write_report",
]
