# make demo | test | bench | lint | soak        ARGS="..." goes to the program that does the work
# On Windows: python dev/run.py demo | test | ...

PYTHON ?= python3
COMMANDS := demo test bench lint soak
# Asked here too, since a very old Python cannot even read dev/run.py.
OLD = sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make $@ PYTHON=python3.12"

.PHONY: $(COMMANDS)
$(COMMANDS):
	@$(PYTHON) -c 'import sys; sys.exit($(OLD))'
	@$(PYTHON) dev/run.py $@ $(ARGS)
