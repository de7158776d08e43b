#!/usr/bin/env Rscript
# Sends one result file with R and the package httr2:
#
#   nvd_send.R FILE DATASET [COLUMN=VALUE ...]     nvd_send.R a.full.tsv gottcha2 sample_id=S1 run_id=R1
#
# NVD_SUPPORT_URL is the service, NVD_BEARER_TOKEN the token. Ends with 0 when the file is stored, now or before, 65
# when the data are bad, 75 when another try may succeed, 77 when the token is refused, 78 for everything else.

library(httr2)

MAX_TIME <- 3600
PASSING <- c(408, 429, 500, 502, 503, 504)
EXIT <- c("400" = 65, "409" = 65, "413" = 65, "422" = 65, "401" = 77, "403" = 77)

# One try: the status, the body, and how long the service asks to wait. Status 0 is no answer.
attempt <- function(request) {
  tryCatch({
    answer <- req_perform(request)
    wait <- suppressWarnings(as.numeric(c(resp_header(answer, "retry-after"), 0)[1]))
    list(status = resp_status(answer), text = resp_body_string(answer), wait = if (is.na(wait)) 0 else wait)
  }, error = function(fault) list(status = 0, text = conditionMessage(fault), wait = 0))
}

# Sends until it is stored, refused, or out of time. Without a key the content is the key, so that is safe.
send <- function(file, request) {
  deadline <- Sys.time() + MAX_TIME
  pause <- 0.5
  repeat {
    outcome <- attempt(request)
    if (outcome$status %in% 200:299) {
      cat(outcome$text, "\n", sep = "")
      return(0)
    }
    message(file, ": ", if (outcome$status) outcome$status else "no answer", ": ", outcome$text)
    if (outcome$status && !outcome$status %in% PASSING) {
      code <- EXIT[as.character(outcome$status)]
      return(if (is.na(code)) 78 else code)
    }
    # Full jitter: clients that were sent away together shall not come back together.
    delay <- outcome$wait + runif(1, 0, pause)
    if (Sys.time() + delay > deadline) return(75)
    Sys.sleep(delay)
    pause <- min(pause * 2, 60)
  }
}

arguments <- commandArgs(trailingOnly = TRUE)
url <- Sys.getenv("NVD_SUPPORT_URL")
token <- Sys.getenv("NVD_BEARER_TOKEN")
if (length(arguments) < 2 || url == "" || token == "") {
  message("usage: NVD_SUPPORT_URL=... NVD_BEARER_TOKEN=... nvd_send.R FILE DATASET [COLUMN=VALUE ...]")
  quit(status = 78)
}
pairs <- arguments[-(1:2)]
columns <- as.list(setNames(sub("^[^=]*=", "", pairs), sub("=.*", "", pairs)))
request <- request(url) |>
  req_url_path_append("ingest", arguments[2]) |>
  req_url_query(!!!columns) |>
  req_auth_bearer_token(token) |>
  req_body_file(arguments[1], type = "application/octet-stream") |>
  req_method("POST") |>
  req_timeout(300) |>
  req_error(is_error = \(answer) FALSE)
quit(status = send(arguments[1], request))
