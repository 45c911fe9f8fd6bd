"""How work is carried out: scenes and trainings, here, by torchrun or on Ray; signals."""
