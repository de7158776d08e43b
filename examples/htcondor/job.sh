#!/usr/bin/env bash
# The executable of a job that computes and sends, with curl.sh as an input file:
#
#   job.sh SAMPLE RUN
#
# Its end is that of the tool, or that of curl.sh. With `retry_until = ExitCode =!= 75` the job runs again only when
# sending may succeed later.
set -euo pipefail
sample=$1 run=$2

gottcha2.py --threads 4 --input "$sample.fastq.gz" --prefix "$sample"
# A sample without hits has no .full.tsv. An empty file is stored as a result of zero rows.
touch "$sample.full.tsv"

NVD_BEARER_TOKEN=${NVD_BEARER_TOKEN:-$(cat "$_CONDOR_CREDS/nvd.use")}
export NVD_BEARER_TOKEN
exec ./curl.sh "$sample.full.tsv" gottcha2 "sample_id=$sample&run_id=$run"
