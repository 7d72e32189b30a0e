"""Where pictures come from: the data sets the configs name, their checks, the demo's pictures."""
