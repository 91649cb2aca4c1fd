from .chains import Chain as Chain
from .compression_report import CompressionReport as CompressionReport, ReportFacts as ReportFacts
from .explanation import Explanation as Explanation, explain as explain, explain_plan as explain_plan
from .extras import REPORT_PACKAGES as REPORT_PACKAGES, import_for_report as import_for_report
from .page import report_page as report_page
