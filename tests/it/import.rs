//! `import`: a folder of finished runs to a live service by the real binary.

use std::path::Path;
use std::process::Stdio;

use tempfile::TempDir;

use crate::app::{TOKEN, TestApp, data};
use crate::process::{binary, folder, text};
use crate::proxy::{Fault, Proxy};

const PROFILES: &str = "results/gottcha2/01_gottcha2_profiles";
const MEGABLAST: &str = "nvd/03_megablast_classification/01_annotated_megablast_classifications";

fn write(root: &TempDir, path: &str, content: impl AsRef<[u8]>) {
    let path = root.path().join("runs").join(path);
    std::fs::create_dir_all(path.parent().expect("folder")).expect("folder");
    std::fs::write(path, content).expect("write");
}

/// Two runs as NVD leaves them: seven results, one of them bad, among files that are none.
fn runs() -> TempDir {
    let root = folder();
    for (sample, version) in [("A", "2.1.8.6"), ("B.2", "2.4.3")] {
        write(
            &root,
            &format!("r1/{PROFILES}/{sample}.full.tsv"),
            data(&format!("gottcha2/v{version}.SRR12689945.full.tsv")),
        );
        write(&root, &format!("r1/{PROFILES}/{sample}.tsv"), data(&format!("gottcha2/v{version}.SRR12689945.tsv")));
        write(&root, &format!("r1/{PROFILES}/{sample}.lineage.tsv"), "no header\n");
    }
    write(&root, &format!("r1/{PROFILES}/water.tsv"), "");
    let hits = data("stast/nvd_annotated_13col.megablast.tsv");
    write(&root, &format!("r1/results/{MEGABLAST}/A.annotated_megablast.txt"), &hits);
    let merged = "r1/results/nvd/04_blastn_classification/03_blastn_megablast_merged/A_blast.merged_with_lca.tsv";
    write(&root, merged, "task\tsample\tqseqid\tadjusted_taxid\nblastn\tA\tc1\t11676\n");
    write(&root, "r2/nvd/07_merged_blast_results/final/C_blast.final.tsv", "sample_id\tqseqid\nC\tc1\nC\tc1\n");
    write(
        &root,
        &format!("r2/{PROFILES}/bad.full.tsv"),
        "LEVEL\tNAME\tTAXID\tREAD_COUNT\tTOTAL_BP_MAPPED\ngenus\tx\t1\tmany\t2\n",
    );
    write(&root, "r2/results/report.html", "<html>");
    write(&root, "r1/.nextflow/history", "");
    root
}

fn command(root: &Path, url: &str, arguments: &[&str]) -> tokio::process::Command {
    let mut command = binary(root);
    command.current_dir(root).args(["import", "runs"]).args(arguments);
    command.env("NVD_SUPPORT_URL", url).env("NVD_BEARER_TOKEN", TOKEN);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    tokio::process::Command::from(command)
}

async fn run(root: &TempDir, url: &str, code: i32, arguments: &[&str]) -> String {
    let output = command(root.path(), url, arguments).output().await.expect("run");
    let said = text(&output.stdout) + &text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    said
}

/// The numbers behind a word of the report.
fn counts(said: &str, word: &str) -> Vec<u64> {
    let line = said.lines().rfind(|line| line.starts_with(word) && !line.contains(':')).unwrap_or_default();
    line[word.len().min(line.len())..].split_whitespace().map(|number| number.parse().expect(line)).collect()
}

#[tokio::test]
async fn a_folder_of_runs_is_stored_once_and_reported() {
    let app = TestApp::start().await;
    let root = runs();
    let said = run(&root, &app.url, 65, &[]).await;
    // The plan comes first.
    assert!(said.starts_with("skip={run}/"), "{said}");
    assert!(said.contains("7 files in runs\n  r1: 3 of gottcha2\n  r1: 1 of nvd_blast\n  r1: 1 of stast\n"), "{said}");
    assert_eq!(counts(&said, "stored"), [6, 8 + 8 + 174 + 1 + 2]);
    assert_eq!(counts(&said, "refused"), [1]);
    assert!(said.contains("refused: runs/r2/results/gottcha2/01_gottcha2_profiles/bad.full.tsv:2:"), "{said}");
    assert_eq!(app.count("gottcha2_full WHERE sample_id = 'B.2' AND run_id = 'r1'").await, 8);
    assert_eq!(app.count("submissions WHERE sample_id = 'water' AND run_id = 'r1' AND rows = 0").await, 1);
    assert_eq!(app.count("stast_table WHERE run_id = 'r1'").await, 174);
    assert_eq!(app.count("nvd_blast WHERE run_id = 'r2'").await, 2);

    // The journal spares what is stored; without it the service says that it is there.
    let said = run(&root, &app.url, 65, &[]).await;
    assert_eq!((counts(&said, "in the journal"), counts(&said, "stored")), (vec![6], vec![0, 0]), "{said}");
    std::fs::remove_file(root.path().join("nvd-import.jsonl")).expect("journal");
    let said = run(&root, &app.url, 65, &[]).await;
    assert_eq!(counts(&said, "already there")[0], 6, "{said}");
    assert_eq!(app.count("submissions").await, 6);

    // Mended files are sent, and no others.
    write(&root, &format!("r2/{PROFILES}/bad.full.tsv"), "LEVEL\tNAME\tTAXID\tREAD_COUNT\tTOTAL_BP_MAPPED\n");
    let said = run(&root, &app.url, 0, &[]).await;
    assert_eq!((counts(&said, "in the journal"), counts(&said, "stored")), (vec![6], vec![1, 0]), "{said}");
}

#[tokio::test]
async fn a_dry_run_shows_what_would_be_sent_of_which_run_and_needs_no_service() {
    let root = runs();
    let said = run(&root, "", 65, &["--dry-run"]).await;
    assert_eq!((counts(&said, "good, not sent")[0], counts(&said, "refused")), (6, vec![1]), "{said}");
    let said = run(&root, "", 65, &["--dry-run", "--run-id", "R", "--experiment", "7"]).await;
    assert!(said.contains("  R: 4 of gottcha2") && said.contains("run_id R, experiment 7, sample_id A"), "{said}");
    let own = "gottcha2={run}/**/gottcha2/*/{sample}.full.tsv";
    let said = run(&root, "", 65, &["--dry-run", "--pattern", own]).await;
    assert!(said.starts_with(own) && said.contains("3 files in runs"), "{said}");
    assert!(!root.path().join("nvd-import.jsonl").exists());

    let said = run(&root, "", 78, &["--pattern", "gotcha2={sample}.tsv"]).await;
    assert!(said.contains("there is no dataset `gotcha2`"), "{said}");
    let said = run(&root, "", 65, &["--pattern", "stast={sample}.none"]).await;
    assert!(said.contains("0 files in runs") && said.contains("--run-id"), "{said}");
}

#[tokio::test]
async fn an_import_that_is_killed_goes_on_where_it_was() {
    const FILES: usize = 40;
    let app = TestApp::start().await;
    let root = folder();
    for file in 0..FILES {
        let name = format!("r{}/{PROFILES}/S{file}.full.tsv", file % 3);
        write(&root, &name, data("gottcha2/v2.4.3.SRR12689945.full.tsv"));
    }
    // Each answer takes its time, so that the end comes in the middle.
    let proxy = Proxy::start(app.address, || Fault::Delay(100)).await;
    let mut first = command(root.path(), &proxy.url, &["--concurrency", "2"]).spawn().expect("start");
    let journal = root.path().join("nvd-import.jsonl");
    let lines = || std::fs::read_to_string(&journal).unwrap_or_default().lines().count();
    crate::app::eventually("some files are stored", async || lines() >= 5).await;
    first.start_kill().expect("kill");
    first.wait().await.expect("end");
    let known = lines();
    assert!(known < FILES, "it was too quick");
    // The last line was being written, and was at a letter of two bytes.
    let mut text = std::fs::read(&journal).expect("journal");
    text.truncate(text.len() - 20);
    text.push("ü".as_bytes()[0]);
    std::fs::write(&journal, text).expect("journal");

    let said = run(&root, &proxy.url, 0, &[]).await;
    assert_eq!(counts(&said, "in the journal"), [known as u64 - 1], "{said}");
    assert_eq!(app.count("submissions").await, FILES as i64);
    assert_eq!(app.count("gottcha2_full").await, 8 * FILES as i64);
    let said = run(&root, &proxy.url, 0, &[]).await;
    assert_eq!(counts(&said, "in the journal"), [FILES as u64], "{said}");
}

#[tokio::test]
async fn what_cannot_be_read_is_named_and_the_rest_is_sent() {
    let root = runs();
    let profiles = root.path().join("runs/r1").join(PROFILES);
    std::os::unix::fs::symlink("/nowhere/gone.full.tsv", profiles.join("gone.full.tsv")).expect("link");
    std::os::unix::fs::symlink(profiles.join("A.full.tsv"), profiles.join("linked.full.tsv")).expect("link");
    let odd = std::os::unix::ffi::OsStrExt::from_bytes(b"r3\xff");
    std::fs::create_dir(root.path().join("runs").join::<&std::ffi::OsStr>(odd)).expect("folder");
    let said = run(&root, "", 65, &["--dry-run"]).await;
    assert_eq!((counts(&said, "good, not sent")[0], counts(&said, "refused")), (7, vec![3]), "{said}");
    assert!(
        said.contains(&format!("refused: runs/r1/{PROFILES}/gone.full.tsv: cannot be read: No such file")),
        "{said}"
    );
    assert!(said.contains("refused: runs/r3\u{fffd}: cannot be read: its name is not UTF-8"), "{said}");
}
