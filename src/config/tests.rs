use std::fs;

use super::*;

fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn load(file: Option<&Path>, pairs: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::load(file, env(pairs), &env(flags))
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("temporary file");
    fs::write(file.path(), text).expect("write");
    file
}

#[test]
fn the_defaults_hold_and_every_key_has_a_comment() {
    let config = load(None, &[], &[]).expect("defaults");
    assert_eq!(config.listen(), "127.0.0.1:8080");
    assert!(!config.has_tokens());
    let mut comment = false;
    for line in DEFAULTS.lines() {
        let is_key = line.contains(" = ") && !line.starts_with('#');
        assert!(!is_key || comment, "no comment above: {line}");
        comment = line.starts_with('#');
    }
}

#[test]
fn the_production_example_holds() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/production.example.toml");
    let config =
        load(Some(&path), &[("DATABASE_URL", "postgres://u:p@h/d"), ("LABKEY_API_KEY", "key")], &[]).expect("example");
    assert_eq!((config.auth.tokens.len(), config.labkey.lists.len()), (3, 2));
}

#[test]
fn later_layers_win() {
    let file = file("[server]\nport = 1\nhost = \"a\"\n[limits]\nburst = 7");
    let config = load(Some(file.path()), &[("PORT", "2")], &[]).expect("layers");
    assert_eq!((config.server.port, config.server.host.as_str(), config.limits.burst), (2, "a", 7));
    let config = load(Some(file.path()), &[("PORT", "2"), ("NVD__SERVER__PORT", "3")], &[]).expect("layers");
    assert_eq!(config.server.port, 3);
    let config = load(Some(file.path()), &[("PORT", "2")], &[("server.port", "4")]).expect("layers");
    assert_eq!(config.server.port, 4);
}

#[test]
fn flat_names_set_their_keys_and_empty_ones_count_as_unset() {
    let pairs =
        [("INGEST_TOKEN", "secret"), ("RATE_LIMIT_RPS", "9"), ("CERT_PATH", ""), ("NVD__INGEST__IDLE_TIMEOUT", "5s")];
    let config = load(None, &pairs, &[]).expect("flat names");
    assert_eq!(config.auth.ingest_token.expect("token").expose(), "secret");
    assert_eq!(config.limits.rate_per_second, 9);
    assert_eq!(config.ingest.idle_timeout, Duration::from_secs(5));
    assert!(config.server.cert_path.is_none());
}

#[test]
fn a_value_may_come_from_a_mounted_file() {
    let secret = file("t0ken\n");
    let path = secret.path().display().to_string();
    let config = load(None, &[("BEARER_TOKEN_FILE", &path)], &[]).expect("file");
    assert_eq!(config.auth.bearer_token.expect("token").expose(), "t0ken");
    let error = load(None, &[("BEARER_TOKEN_FILE", "/nowhere/token")], &[]).expect_err("missing").to_string();
    assert!(error.contains("BEARER_TOKEN_FILE") && error.contains("/nowhere/token"), "{error}");
}

#[test]
fn all_faults_are_reported_at_once_without_values() {
    let file = file("[server]\nprot = 1\n[log]\nformat = \"hidden1\"\n[ingest]\nmax_line = \"hidden2\"\n");
    let pairs = [("NVD__LIMITS__BURST", "hidden3"), ("SERVER_PORT", "1"), ("PORT", "2")];
    let error = load(Some(file.path()), &pairs, &[]).expect_err("faults");
    let text = error.to_string();
    for part in
        ["server.prot", "did you mean server.port", "log.format", "ingest.max_line", "limits.burst", "SERVER_PORT"]
    {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    assert!(!text.contains("hidden"), "{text}");
    assert_eq!(error.faults.len(), 5, "{text}");
}

#[test]
fn keys_that_contradict_each_other_are_refused() {
    let text =
        load(None, &[("CERT_PATH", "/c.pem"), ("NVD__LIMITS__BURST", "0")], &[]).expect_err("faults").to_string();
    assert!(text.contains("server.cert_path") && text.contains("limits.burst"), "{text}");
}

#[test]
fn numbers_that_no_machine_can_bear_are_refused() {
    let overrides = [
        ("ingest.idle_timeout", "25d"),
        ("ingest.queue", "2000"),
        ("ingest.concurrency", "2305843009213693952"),
        ("ingest.max_line", "2GiB"),
        ("server.shutdown_deadline", "10000000000d"),
        ("database.acquire_timeout", "0s"),
        ("limits.queue", "2305843009213693952"),
        ("database.max_connections", "100"),
        ("export.slots", "100000"),
        ("export.lease", "1000000d"),
        ("export.link_lifetime", "8d"),
        ("labkey.slots", "100000"),
    ];
    let text = load(None, &[], &overrides).expect_err("faults").to_string();
    for (key, _) in overrides {
        assert!(text.contains(key), "{key} is not in:\n{text}");
    }
}

#[test]
fn exports_that_would_take_every_connection_are_refused() {
    let connections = |slots| load(None, &[], &[("export.slots", slots), ("database.max_connections", "5")]);
    let text = connections("2").expect_err("a fault").to_string();
    assert!(text.contains("export.slots") && text.contains("database.max_connections"), "{text}");
    connections("1").expect("two are left");
}

#[test]
fn tokens_that_no_request_can_have_or_that_allow_two_things_are_refused() {
    for token in ["x\n", " x", "\u{e4}"] {
        let text = load(None, &[("BEARER_TOKEN", token)], &[]).expect_err("faults").to_string();
        assert!(text.contains("auth.bearer_token"), "{text}");
    }
    let hash = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881";
    let twice = file(&format!("[[auth.tokens]]\nname = \"a\"\nscopes = [\"read\"]\nsha256 = \"{hash}\"\n"));
    let text = load(Some(twice.path()), &[("BEARER_TOKEN", "x")], &[]).expect_err("faults").to_string();
    assert!(text.contains("configured twice"), "{text}");
    load(Some(twice.path()), &[("BEARER_TOKEN", "y")], &[]).expect("two tokens");
}

#[test]
fn a_token_that_has_the_name_of_another_is_refused() {
    let hash = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881";
    for name in ["ingest_token", "bearer_token"] {
        let file = file(&format!("[[auth.tokens]]\nname = \"{name}\"\nscopes = [\"read\"]\nsha256 = \"{hash}\"\n"));
        let text = load(Some(file.path()), &[], &[]).expect_err("faults").to_string();
        assert!(text.contains("auth.tokens") && text.contains(name), "{text}");
    }
}

#[test]
fn an_address_that_links_cannot_begin_with_is_refused() {
    let text = load(None, &[("NVD__SERVER__PUBLIC_URL", "nvd.example.org")], &[]).expect_err("faults").to_string();
    assert!(text.contains("server.public_url") && text.contains("https://"), "{text}");
    load(None, &[("NVD__SERVER__PUBLIC_URL", "https://nvd.example.org")], &[]).expect("an address");
}

#[test]
fn an_address_that_postgresql_does_not_have_is_refused_without_its_password() {
    for url in ["postgres://u:s3cret/x@h/d", "postgres://u:s3cret@h:port/d", "postgres://u:s3%FFcret@h/d"] {
        let text = load(None, &[("DATABASE_URL", url)], &[]).expect_err("a fault").to_string();
        assert!(text.contains("database.url") && text.contains("%40") && !text.contains("cret"), "{text}");
    }
    load(None, &[("DATABASE_URL", "postgres://u:s3%40cret@h:5432/d?sslmode=require")], &[]).expect("an address");
}

#[test]
fn secrets_are_never_printed() {
    let pairs = [("INGEST_TOKEN", "s3cret"), ("DATABASE_URL", "postgres://u:s3cret@h/d")];
    let config = load(None, &pairs, &[]).expect("secrets");
    assert!(!format!("{config:?}").contains("s3cret"));
    let printed = config.to_toml().expect("toml");
    assert!(!printed.contains("s3cret") && printed.contains("[redacted]"), "{printed}");
}
