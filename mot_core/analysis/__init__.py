"""From the tables of many experiments to what a study says: selections, paired estimates, wording, figures."""
