// Sends GOTTCHA2 reports from a workflow: a process for each report, and a hook that sends what is left at its end.
//
//   nextflow run main.nf --reports 'results/*.full.tsv' --nvd_url https://nvd.example.org:8443
//
// The token is a secret: nextflow secrets set NVD_BEARER_TOKEN ...

params.reports = 'results/*.full.tsv'
params.nvd_url = 'http://127.0.0.1:8080'

process SEND {
    tag "$sample"
    secret 'NVD_BEARER_TOKEN'
    maxForks 8
    // 75 may succeed later; everything else stays as it is.
    errorStrategy { task.exitStatus == 75 ? 'retry' : 'finish' }
    maxRetries 5

    input:
    tuple val(sample), path(report)

    output:
    tuple val(sample), path('sent.txt')

    // The session id is that of the run for ever, also after -resume. Run names recur.
    script:
    """
    nvd-support-car send '$report' --url '${params.nvd_url}' --dataset gottcha2 --sample-id '$sample' \\
        --run-id '${workflow.sessionId}' --key '${workflow.sessionId}/$report' --max-time 30m > sent.txt
    """
}

workflow {
    Channel.fromPath(params.reports)
        .map { report -> tuple(report.name.replaceFirst(/\.full\.tsv$/, ''), report) }
        | SEND

    // What a task could not send, another try at the end may; what is there already is only looked at. This runs where
    // nextflow runs, with NVD_BEARER_TOKEN in its environment.
    workflow.onComplete = {
        files(params.reports).each { report ->
            def sample = report.name.replaceFirst(/\.full\.tsv$/, '')
            def session = workflow.sessionId.toString()
            def send = ['nvd-support-car', 'send', report.toString(), '--url', params.nvd_url, '--dataset', 'gottcha2',
                        '--sample-id', sample, '--run-id', session, '--key', "${session}/${report.name}".toString(),
                        '--max-time', '5m'].execute()
            send.waitForProcessOutput(System.out, System.err)
            if (send.exitValue() != 0) log.warn "${report.name} is not stored: nvd-support-car ended with ${send.exitValue()}"
        }
    }
}
