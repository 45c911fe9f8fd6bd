"""Reports: score tables, label statistics, pictures of labelled point clouds."""
