#!/bin/sh
# One run by several processes of this machine, one for each GPU (two on a machine without any):
#
#     sh examples/torchrun.sh --dataset cifar10 --data-root DIR --output runs/cifar
#
# Ctrl-C ends all of them with a checkpoint. The same command with --resume goes on, by as many
# processes. PROCESSES sets their number; THREADS those of each on the CPU.
set -e

processes=${PROCESSES:-$(python -c "import torch; print(torch.cuda.device_count() or 2)")}
export OMP_NUM_THREADS="${THREADS:-1}"

# --batch-size is that of all processes together: each takes its share of every batch.
exec torchrun --standalone --nproc-per-node "$processes" -m atmc_cli compress "$@"
