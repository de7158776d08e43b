#!/usr/bin/env Rscript
# Sends one result file with R and the package httr2:
#
#   nvd_send.R FILE DATASET [COLUMN=VALUE ...]     nvd_send.R a.full.tsv gottcha2 sample_id=S1 run_id=R1
#
# NVD_SUPPORT_URL is the service, NVD_BEARER_TOKEN the token. Without a key the content is its own key, so that trying
# again is safe. Ends with 0 when the file is stored, now or before, else with the codes of the other clients.

library(httr2)

arguments <- commandArgs(trailingOnly = TRUE)
columns <- list()
for (pair in arguments[-(1:2)]) {
  columns[[sub("=.*", "", pair)]] <- sub("^[^=]*=", "", pair)
}

request <- request(Sys.getenv("NVD_SUPPORT_URL")) |>
  req_url_path_append("ingest", arguments[2]) |>
  req_url_query(!!!columns) |>
  req_auth_bearer_token(Sys.getenv("NVD_BEARER_TOKEN")) |>
  req_body_file(arguments[1], type = "application/octet-stream") |>
  req_method("POST") |>
  req_retry(
    max_tries = 12,
    retry_on_failure = TRUE,
    is_transient = \(answer) resp_status(answer) %in% c(408, 429, 500, 502, 503, 504)
  ) |>
  req_error(is_error = \(answer) FALSE)

answer <- tryCatch(req_perform(request), error = function(fault) {
  message(conditionMessage(fault))
  quit(status = 75)
})
status <- resp_status(answer)
if (status < 300) {
  cat(resp_body_string(answer), "\n")
  quit(status = 0)
}
message(resp_body_string(answer))
quit(status = switch(as.character(status),
  "400" = , "409" = , "413" = , "422" = 65,
  "401" = , "403" = 77,
  "408" = , "429" = , "500" = , "502" = , "503" = , "504" = 75,
  78
))
