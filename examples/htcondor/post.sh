#!/usr/bin/env bash
# A DAGMan post script: sends the results of a node from the access point, for workers without a way to the service.
#
#   SCRIPT POST gottcha2_S1 post.sh $RETURN S1 RUN
#   RETRY gottcha2_S1 3 UNLESS-EXIT 65
#
# A node whose job failed stays failed. There is no job around this script, so the run and the file make the key.
set -euo pipefail
returned=$1 sample=$2 run=$3
[ "$returned" -eq 0 ] || exit "$returned"

file=results/$sample.full.tsv
exec nvd-support-car send "$file" --dataset gottcha2 --sample-id "$sample" --run-id "$run" \
    --key "$run/$(basename "$file")" --max-time 30m
