"""From raw logs to a scored student: data sets, configuration, artifacts, stages, execution, reports."""
