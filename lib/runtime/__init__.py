"""The run of one kernel: its session, inputs, hardware and run.json."""
