# One target a stage; each is a file in the run's folder, so asking twice does nothing. `make help` lists them.
SHELL := /bin/bash -o pipefail
.DELETE_ON_ERROR:
.NOTPARALLEL:  # the stages follow one another, and a measurement wants the machine for itself
.SUFFIXES:

##@ Variables
## CONFIG=FILE      TOML configuration                          (configs/default.toml; none for your own DATA)
## MODEL=NAME       built-in name or package.module:factory     (the config's model.arch)
## WEIGHTS=FILE     trained .pth or .safetensors                (the config's model.weights)
## DATA=WHERE       digits, cifar10:FOLDER, or a folder with train/ and val/
## RUN=DIR          where the stages write                      (the config's run.dir; else named after the above)
## SET="a.b=c ..."  any other keys of the configuration; no spaces within one
## PYTHON=EXE       the Python that makes the environment       (python3.11)
MODEL   =
WEIGHTS =
DATA    =
SET     =
PYTHON  ?= $(shell command -v python3.11 || echo python3)
VENV    ?= .venv
# The embedded default's settings are for digits; your own images start from the built-in defaults.
CONFIG  = $(if $(filter-out digits,$(DATA)),,configs/default.toml)

config_key = $(if $(CONFIG),$(shell $(PYTHON) -c 'import sys, tomllib; \
             print(tomllib.load(open(sys.argv[1], "rb")).get(sys.argv[2], {}).get(sys.argv[3], ""))' \
             '$(CONFIG)' $(1) $(2) 2>/dev/null))
stem       = $(basename $(notdir $(1:%/=%)))
own_run    = runs/$(subst :,-,$(or $(notdir $(MODEL)),resnet18)$(if $(WEIGHTS),-$(call stem,$(WEIGHTS)))-$(or $(call stem,$(DATA)),digits))
chosen_run := $(if $(and $(MODEL)$(WEIGHTS)$(DATA),$(filter file undefined,$(origin CONFIG))),$(own_run),\
              $(or $(call config_key,run,dir),runs/$(call stem,$(CONFIG))))
RUN        = $(strip $(chosen_run))
ifneq ($(words $(RUN)),1)
$(error RUN='$(RUN)' must be one folder without spaces)
endif

# The budget is a latency where the last word says so; its table is measured here unless the config names another.
budget     = $(or $(filter prune.latency=% prune.macs=% prune.params=% prune.ratio=%,$(SET)),$(call config_key,prune,latency))
own_table  = $(or $(filter prune.table=%,$(SET)),$(call config_key,prune,table))
measured   = $(if $(own_table),,$(RUN)/latency_table.json)
table      = $(if $(filter-out prune.macs=% prune.params=% prune.ratio=%,$(budget)),$(measured))
# `profile` and `pareto` must have the table. Pruning depends on it only where it exists, and else measures it in its own
# rule, if it can: otherwise a machine that cannot measure would run all stages again at every call.
must       = $(filter profile pareto,$(MAKECMDGOALS))
known      = $(if $(must),$(table),$(wildcard $(table)))

# TensorRT for RTX is installed where it is asked for.
wanted     = $(or $(filter target.name=% target.engine=%,$(SET)),$(call config_key,target,name) $(call config_key,target,engine))
rtx        = $(if $(findstring tensorrt-rtx,$(wanted)),$(VENV)/.tensorrt-rtx)

PY       := $(VENV)/bin/python
settings := run.dir=$(RUN) \
            $(if $(MODEL),model.arch=$(MODEL)) $(if $(WEIGHTS),model.weights=$(WEIGHTS)) \
            $(if $(DATA),$(if $(filter digits,$(DATA)),data.kind=digits,\
                $(if $(filter cifar10:%,$(DATA)),data.kind=cifar10 data.train=$(DATA:cifar10:%=%),\
                data.kind=imagefolder data.train=$(DATA:%/=%)/train data.eval=$(DATA:%/=%)/val))) \
            $(SET)
ARGS     := $(if $(CONFIG),--config '$(CONFIG)') $(foreach setting,$(strip $(settings)),--set '$(setting)')
COMPRESS := $(PY) -m compress
ENV      := $(VENV)/.installed
ASKED    := $(RUN)/make.args

##@ Stages
.PHONY: baseline profile prune quantize export build latency accuracy pareto plots report deploy all
baseline: $(RUN)/baseline/stage.json  ## load the trained network, or train it
profile: $(RUN)/latency_table.json    ## measure the latency table that prune.latency needs, on the target's engine
prune: $(RUN)/finetune/stage.json     ## remove channels within the budget, and fine-tune
quantize: $(RUN)/quantize/stage.json  ## INT8 by calibration or quantization-aware training
export: $(RUN)/summary.json           ## ONNX files, and the table before and after
build: $(RUN)/build/stage.json        ## the engine for the target
all: export build

$(ENV): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

$(VENV)/.tensorrt-rtx: pyproject.toml | $(ENV)
	@echo "installing TensorRT for RTX (150 MB)" >&2
	@$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[tensorrt-rtx]" \
	  && touch $@

# Rewritten only when what was asked for changes, so that a new MODEL= or SET= reruns what depends on it.
.PHONY: FORCE
$(ASKED): FORCE
	@mkdir -p $(@D)
	@echo "$(ARGS)" | cmp --quiet - $@ || echo "$(ARGS)" > $@

$(RUN)/baseline/stage.json: $(CONFIG) $(ASKED) $(wildcard $(or $(WEIGHTS),$(call config_key,model,weights))) | $(ENV) $(rtx)
	@$(COMPRESS) baseline $(ARGS)
# Exit code 5: the target's engine is not on this machine. A table from a kit is then as good as measured again.
measure    = $(PY) -m benchmarks.latency_table $(ARGS)$(if $(must),, || { [ $$? -eq 5 ] && touch -c $(measured) && \
             echo "make goes on: pruning can do without a latency table of this machine" >&2; })
$(RUN)/latency_table.json: $(RUN)/baseline/stage.json
	@$(measure)
$(RUN)/prune/stage.json: $(RUN)/baseline/stage.json $(known)
	@$(if $(filter-out $(known),$(table)),$(measure))
	@$(COMPRESS) prune $(ARGS)
$(RUN)/finetune/stage.json: $(RUN)/prune/stage.json
	@$(COMPRESS) finetune $(ARGS)
$(RUN)/quantize/stage.json: $(RUN)/finetune/stage.json
	@$(COMPRESS) quantize $(ARGS)
$(RUN)/export/stage.json: $(RUN)/quantize/stage.json
	@$(COMPRESS) export $(ARGS)
$(RUN)/build/stage.json: $(RUN)/export/stage.json
	@$(COMPRESS) build $(ARGS)
# Exit code 5: the target's engine is not on this machine; the table is then of the exported files alone.
# Exit code 4: the machine was too busy for a measurement to count; the table says so.
$(RUN)/summary.json: $(RUN)/export/stage.json
	@$(COMPRESS) build $(ARGS) || [ $$? -eq 5 ]
	@$(PY) -m benchmarks.summary $(ARGS) || [ $$? -eq 4 ]

# Newest first: the engine that was asked for last, then those of other targets.
built = $(shell ls -t $(addprefix $(RUN)/build/*.,onnx xml plan) 2>/dev/null)
latency: $(RUN)/build/stage.json      ## time the built engine
	@$(PY) -m benchmarks.latency --engine $(built)
accuracy: $(RUN)/build/stage.json     ## top-1 of the built engine on the evaluation images
	@$(PY) -m benchmarks.accuracy $(ARGS) --engine $(firstword $(built))
pareto: $(RUN)/baseline/stage.json $(measured)  ## compress to several latencies; accuracy against latency, and which to take
	@$(PY) -m benchmarks.pareto $(ARGS) || [ $$? -eq 4 ]
plots: $(RUN)/prune/stage.json        ## predicted front, loss curves and measured front as SVG, in plots/
	@$(PY) -m benchmarks.plots --run $(RUN)
report: $(RUN)/summary.json           ## the run as one HTML page, and a model card
	@$(PY) -m benchmarks.report $(RUN)
deploy: $(RUN)/build/stage.json       ## the built engine with what runs it on a device, in deploy/
	@$(PY) -m benchmarks.deploy $(ARGS) --engine $(firstword $(built)) --output $(RUN)/deploy --force

##@ Development
.PHONY: env bindings test test-all kill-test baseline-update lint clean help
env: $(ENV)            ## the environment, from pinned versions
BINDINGS := $(addprefix $(VENV)/tensorrt-,10.0.1 11.4.0.106)
bindings: $(BINDINGS) $(VENV)/.tensorrt-rtx  ## TensorRT's Python bindings, old and new, and TensorRT for RTX, for the tests
$(VENV)/tensorrt-%: | $(ENV)
	$(PY) -m pip install --quiet --no-deps --target $@ tensorrt_cu$(if $(filter 10.0.%,$*),12,13)_bindings==$*
export TENSORRT_BINDINGS ?= $(subst $(eval ) ,:,$(wildcard $(BINDINGS)))
# Two at a time, each with one thread and its own files: what they measure need not be right, only told right.
test: $(ENV)           ## the fast tests
	@OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses 2 --dist loadfile
baseline-update: $(ENV)  ## compress the embedded default anew; show and write tests/regression/baseline.json
	@$(PY) -m benchmarks.regression --baseline tests/regression/baseline.json --update
test-all: $(ENV)       ## every test that this machine can run
	@$(PY) -m pytest -m ''
KILLS ?= 50
kill-test: $(ENV)      ## kill the pipeline KILLS times at random moments: each time it must come to the same bytes
	@KILLS=$(KILLS) $(PY) -m pytest -m '' --timeout 0 -s tests/integration/test_kill.py
lint: $(ENV)           ## ruff, mypy --strict, and which room may import which (import-linter)
	@$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy && $(VENV)/bin/lint-imports --no-logo
clean:                 ## remove what the stages wrote for this run
	rm -rf $(addprefix $(RUN)/,baseline latency latency_table.json sizes candidates losses rounds prune finetune quantize calibrations \
	  sensitivity export build deploy .scratch make.args summary.json summary.md pareto plots report.html model_card.md)
help:                  ## this list
	@awk -F ':.*## ' '/^##@ /{print "\n" substr($$0,5)} /^## /{print "  " substr($$0,4)} \
	  /^[a-z-]+:.*## /{printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
