//! Generated GOTTCHA2 records with the distributions of real profiles: always the same for the same seed.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Distinct taxa; a few are common, most are rare.
const TAXA: usize = 30_000;

/// Rows of one sample.
const SAMPLE_ROWS: std::ops::Range<u32> = 8..200;

const LEVELS: [&str; 8] = ["superkingdom", "phylum", "class", "order", "family", "genus", "species", "strain"];
const WORDS: [&str; 16] = [
    "virus",
    "zairense",
    "Escherichia",
    "coli",
    "Mycobacterium",
    "tuberculosis",
    "complex",
    "phage",
    "Candidatus",
    "subsp.",
    "Orthoebolavirus",
    "sedimentum",
    "marinus",
    "Pseudomonas",
    "aeruginosa",
    "bacterium",
];

/// Writes records line by line.
pub struct Records {
    random: SmallRng,
    taxa: Vec<(String, String)>,
    sample: u32,
    left: u32,
}

impl Records {
    /// Records of a seed. Samples of different seeds have different names.
    pub fn new(seed: u32) -> Self {
        let mut names = SmallRng::seed_from_u64(1);
        Self::of((0..TAXA).map(|index| taxon(&mut names, index)).collect(), seed)
    }

    /// Records of that taxon only.
    pub fn of_taxon(name: &str, taxid: &str, seed: u32) -> Self {
        Self::of(vec![(name.to_owned(), taxid.to_owned())], seed)
    }

    fn of(taxa: Vec<(String, String)>, seed: u32) -> Self {
        Self { random: SmallRng::seed_from_u64(u64::from(seed)), taxa, sample: seed * 1_000_000, left: 0 }
    }
}

impl Lines for Records {
    /// 21 fields, about 380 bytes.
    fn write(&mut self, line: &mut String) {
        if self.left == 0 {
            self.sample += 1;
            self.left = self.random.random_range(SAMPLE_ROWS);
        }
        self.left -= 1;
        let random = &mut self.random;
        // The cube of an even distribution: low numbers, and so the common taxa, come often.
        let skew: f64 = random.random::<f64>().powi(3);
        let taxon = (skew * self.taxa.len() as f64) as usize;
        let (name, taxid) = &self.taxa[taxon.min(self.taxa.len() - 1)];
        let reads = (-random.random::<f64>().ln() * 800.0) as u64;
        let coverage: f64 = random.random();
        let identity = 0.9 + random.random::<f64>() / 10.0;
        let depth = -random.random::<f64>().ln() * 3.0;
        let abundance: f64 = random.random::<f64>().powi(2);
        let level = LEVELS[random.random_range(0..LEVELS.len())];
        writeln!(
            line,
            "{{\"sample_id\":\"SRR{:08}\",\"run_id\":\"run-20261120\",\"level\":\"{level}\",\"name\":\"{name}\",\"taxid\":\"{taxid}\",\
             \"read_count\":{reads},\"total_bp_mapped\":{},\"ani_ci95\":{identity:.6},\"covered_sig_len\":{},\
             \"best_sig_cov\":{coverage:.6},\"depth\":{depth:.6},\"rel_abundance\":{abundance:.6},\"total_read_len\":{},\
             \"read_idt\":{:.6},\"total_bp_mismatch\":{},\"total_bp_indel\":{},\"sig_cov\":{coverage:.6},\
             \"zscore\":{:.6},\"abundance\":{depth:.6},\"genome_count\":{},\"note\":\"\"}}",
            self.sample,
            reads * 137,
            (coverage * 20_000.0) as u64,
            reads * 149,
            identity - 0.01,
            reads / 3,
            reads % 7,
            random.random::<f64>(),
            1 + reads % 4,
        )
        .expect("a String takes everything");
    }
}

fn taxon(names: &mut SmallRng, index: usize) -> (String, String) {
    let words: Vec<&str> = (0..names.random_range(2..5)).map(|_| WORDS[names.random_range(0..WORDS.len())]).collect();
    (format!("{} {index}", words.join(" ")), (10_000 + index * 7).to_string())
}

/// Records as JSONL.
pub trait Lines {
    /// Appends one record and its line end.
    fn write(&mut self, line: &mut String);
}

/// Writes `rows` records as one gzip file, level 6.
pub fn write_gzip(path: &Path, records: &mut impl Lines, rows: u64) {
    let file = BufWriter::new(File::create(path).expect("a file for generated records"));
    let mut gzip = GzEncoder::new(file, Compression::new(6));
    let mut line = String::new();
    for _ in 0..rows {
        line.clear();
        records.write(&mut line);
        gzip.write_all(line.as_bytes()).expect("room for generated records");
    }
    gzip.finish().and_then(|mut file| file.flush()).expect("room for generated records");
}
