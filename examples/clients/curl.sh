#!/usr/bin/env bash
# Sends one result file with curl alone:
#
#   curl.sh FILE DATASET [QUERY]      curl.sh a.full.tsv gottcha2 'sample_id=S1&run_id=R1'
#
# NVD_SUPPORT_URL is the service, NVD_BEARER_TOKEN the token. Ends with 0 when the file is stored, now or before, 65
# when the data are bad, 75 when another try may succeed, 77 when the token is refused, 78 for everything else.
set -euo pipefail
file=$1 dataset=$2 query=${3-}
: "${NVD_SUPPORT_URL:?}" "${NVD_BEARER_TOKEN:?}"

# In an HTCondor job the key is its name, which outlives restarts, and the file's. Else the content is its own key.
key=()
job=$(sed -n 's/^GlobalJobId = "\(.*\)"$/\1/p' "${_CONDOR_JOB_AD:-/dev/null}")
if [ -n "$job" ]; then key=(-H "Idempotency-Key: $job/$(basename "$file")"); fi

receipt=$(mktemp)
trap 'rm -f "$receipt"' EXIT
# The token goes through a pipe: other users can read the arguments of a process.
status=$(curl --silent --show-error --config - --retry 8 --retry-all-errors --retry-max-time 1800 \
    ${key[@]+"${key[@]}"} --data-binary @"$file" --output "$receipt" --write-out '%{http_code}' \
    "$NVD_SUPPORT_URL/ingest/$dataset?$query" <<< "header = \"Authorization: Bearer $NVD_BEARER_TOKEN\"") || true

case $status in
2??) cat "$receipt" && exit 0 ;;
000 | 408 | 429 | 5??) code=75 ;;
400 | 409 | 413 | 422) code=65 ;;
401 | 403) code=77 ;;
*) code=78 ;;
esac
cat "$receipt" >&2
exit "$code"
