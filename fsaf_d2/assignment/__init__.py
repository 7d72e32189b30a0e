"""Which predictions answer for which object: functions of plain tensors."""
