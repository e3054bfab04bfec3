"""The science as pure functions: task draw → data → network → multitask update → measurement and probe."""
