"""The report types that every command shares: parameters, memory, a run, data, weights, a comparison."""

from peftlab.reports.base import Report
from peftlab.reports.comparison import (
    STOPPED,
    BudgetReport,
    ComparisonReport,
    SearchReport,
    TrialReport,
    VariantReport,
)
from peftlab.reports.data import DataReport, LengthBin, RowReport, RowView, Span, StepsReport
from peftlab.reports.memory import (
    PHASES,
    CheckpointingReport,
    CommunicationReport,
    DevicePhase,
    MemoryReport,
    MethodPlan,
    StrategyPlan,
)
from peftlab.reports.parameters import CountRow, ParameterReport
from peftlab.reports.runs import (
    AuditReport,
    CallbackReport,
    DryRunReport,
    InferenceReport,
    Metrics,
    Progress,
    ResumeReport,
    RunResult,
    SpeedReport,
    SplitReport,
    Status,
    SwitchReport,
)
from peftlab.reports.study import ExpectationReport, StudyReport, TableReport
from peftlab.reports.weights import AgreementReport, Change, ExportReport, MergeReport, MetricChange

__all__ = [
    "AgreementReport",
    "AuditReport",
    "BudgetReport",
    "CallbackReport",
    "CheckpointingReport",
    "CommunicationReport",
    "ComparisonReport",
    "CountRow",
    "DataReport",
    "DevicePhase",
    "DryRunReport",
    "ExpectationReport",
    "ExportReport",
    "InferenceReport",
    "LengthBin",
    "MemoryReport",
    "MergeReport",
    "MethodPlan",
    "Change",
    "MetricChange",
    "Metrics",
    "PHASES",
    "ParameterReport",
    "Progress",
    "Report",
    "ResumeReport",
    "RowReport",
    "RowView",
    "RunResult",
    "STOPPED",
    "SearchReport",
    "Span",
    "SpeedReport",
    "SplitReport",
    "Status",
    "StepsReport",
    "StrategyPlan",
    "StudyReport",
    "SwitchReport",
    "TableReport",
    "TrialReport",
    "VariantReport",
]
