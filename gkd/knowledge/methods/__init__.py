"""Other methods of distillation, one file each."""
