"""Writing any adapter as plain LoRA: what that can hold, and how."""
