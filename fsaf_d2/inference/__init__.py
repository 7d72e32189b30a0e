"""From dense predictions to detections: functions of plain tensors."""
