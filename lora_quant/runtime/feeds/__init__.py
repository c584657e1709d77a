"""What a graph is fed: inputs, given or made, and soft prompts."""
