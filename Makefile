# make demo | test | bench | lint | soak        ARGS="..." goes to the program that does the work
# On Windows: python dev/run.py demo | test | ...

PYTHON ?= python3
COMMANDS := demo test bench lint soak

.PHONY: $(COMMANDS)
$(COMMANDS):
	@$(PYTHON) dev/run.py $@ $(ARGS)
