"""The frame of a rule: fields, tensor names, patterns and targets, the same for all kinds."""
