//! Generated GOTTCHA2 profiles with lineages, as the tool writes them: what was found of a strain counts for its species, its
//! genus, and so on up to its superkingdom; always the same for the same seed.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::records::Lines;

/// Distinct strains; a few are common, most are rare. Each rank has a fifth of the taxa of the rank below.
const STRAINS: usize = 30_000;

const LEVELS: [&str; 8] = ["superkingdom", "phylum", "class", "order", "family", "genus", "species", "strain"];

/// Writes profiles line by line.
pub struct Profiles {
    random: SmallRng,
    sample: u32,
    lines: VecDeque<String>,
}

/// What was found of a taxon.
#[derive(Default)]
struct Found {
    reads: u64,
    mapped: u64,
    mismatched: u64,
    signature: u64,
    covered: u64,
}

impl Profiles {
    /// Profiles of a seed. Samples of different seeds have different names.
    pub fn new(seed: u32) -> Self {
        let random = SmallRng::seed_from_u64(u64::from(seed));
        Self { random, sample: seed * 1_000_000, lines: VecDeque::new() }
    }

    fn sample(&mut self) {
        self.sample += 1;
        let strains: Vec<(usize, Found)> = (0..self.random.random_range(1..20)).map(|_| self.strain()).collect();
        for (rank, level) in LEVELS.iter().enumerate() {
            let share = 5_usize.pow(u32::try_from(LEVELS.len() - 1 - rank).expect("few ranks"));
            let mut taxa: BTreeMap<usize, Found> = BTreeMap::new();
            for (strain, found) in &strains {
                let taxon = taxa.entry(strain / share).or_default();
                taxon.reads += found.reads;
                taxon.mapped += found.mapped;
                taxon.mismatched += found.mismatched;
                taxon.signature += found.signature;
                taxon.covered += found.covered;
            }
            let whole: f64 = taxa.values().map(Found::depth).sum();
            for (taxon, found) in taxa {
                self.lines.push_back(found.line(self.sample, level, rank, taxon, whole));
            }
        }
    }

    fn strain(&mut self) -> (usize, Found) {
        let random = &mut self.random;
        let strain = (random.random::<f64>().powi(3) * STRAINS as f64) as usize;
        let reads = 1 + (-random.random::<f64>().ln() * 800.0) as u64;
        let mapped = reads * random.random_range(100..150);
        let signature = 1_000 + (strain as u64 * 7_919) % 30_000;
        let covered = (signature as f64 * random.random::<f64>()) as u64;
        let mismatched = (mapped as f64 * random.random::<f64>() * 0.1) as u64;
        (strain, Found { reads, mapped, mismatched, signature, covered })
    }
}

impl Found {
    fn depth(&self) -> f64 {
        self.mapped as f64 / self.signature as f64
    }

    /// The same 21 fields as those of [`crate::records::Records`].
    fn line(&self, sample: u32, level: &str, rank: usize, taxon: usize, whole: f64) -> String {
        let identity = 1.0 - self.mismatched as f64 / self.mapped as f64;
        let coverage = self.covered as f64 / self.signature as f64;
        let mut line = String::new();
        writeln!(
            line,
            "{{\"sample_id\":\"SRR{sample:08}\",\"run_id\":\"run-20261120\",\"level\":\"{level}\",\
             \"name\":\"Taxon of the {level} {taxon}\",\"taxid\":\"{}\",\"read_count\":{},\"total_bp_mapped\":{},\
             \"ani_ci95\":{identity:.6},\"covered_sig_len\":{},\"best_sig_cov\":{coverage:.6},\"depth\":{:.6},\
             \"rel_abundance\":{:.6},\"total_read_len\":{},\"read_idt\":{:.6},\"total_bp_mismatch\":{},\"total_bp_indel\":{},\
             \"sig_cov\":{coverage:.6},\"zscore\":{:.6},\"abundance\":{:.6},\"genome_count\":{},\"note\":\"\"}}",
            rank * 100_000 + taxon,
            self.reads,
            self.mapped,
            self.covered,
            self.depth(),
            self.depth() / whole,
            self.reads * 149,
            identity - 0.01,
            self.mismatched,
            self.reads % 7,
            coverage * (1.0 - coverage),
            self.depth(),
            1 + taxon % 4,
        )
        .expect("a String takes everything");
        line
    }
}

impl Lines for Profiles {
    fn write(&mut self, line: &mut String) {
        if self.lines.is_empty() {
            self.sample();
        }
        line.push_str(&self.lines.pop_front().unwrap_or_default());
    }
}
