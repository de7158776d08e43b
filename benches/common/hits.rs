//! Generated STAST hits: BLAST lines with titles and lineages of real length, always the same for the same seed.

use std::fmt::Write as _;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::records::Lines;

/// Distinct reference sequences.
const REFERENCES: usize = 20_000;

const KINDS: [&str; 4] =
    ["complete genome", "isolate BS/2019/17, partial cds", "strain K12 chromosome, whole genome shotgun", "segment 4"];

/// Writes hits line by line.
pub struct Hits {
    random: SmallRng,
    sample: u32,
    contig: u32,
    left: u32,
}

impl Hits {
    /// Hits of a seed. Samples of different seeds have different names.
    pub fn new(seed: u32) -> Self {
        Self { random: SmallRng::seed_from_u64(u64::from(seed)), sample: seed * 1_000_000, contig: 0, left: 0 }
    }
}

impl Lines for Hits {
    /// NVD's 13 columns, about 620 bytes.
    fn write(&mut self, line: &mut String) {
        let random = &mut self.random;
        if self.left == 0 {
            self.contig += 1;
            self.sample += u32::from(self.contig.is_multiple_of(40));
            self.left = random.random_range(1..11);
        }
        self.left -= 1;
        let reference = (random.random::<f64>().powi(2) * REFERENCES as f64) as usize;
        let length = 300 + self.contig * 7 % 9000;
        let identity = 80.0 + random.random::<f64>() * 20.0;
        let family = reference % 97;
        writeln!(
            line,
            "{{\"task\":\"{}\",\"sample_id\":\"SRR{:08}\",\"qseqid\":\"NODE_{}_length_{length}_cov_{:.6}\",\"qlen\":{length},\
             \"sseqid\":\"gb|KX{reference:06}.1|\",\"stitle\":\"Orthopolyomavirus variant {reference} of family {family} from \
             wastewater in Wisconsin USA, {}\",\"length\":{},\"pident\":{identity:.3},\"evalue\":{:e},\"bitscore\":{:.1},\
             \"sscinames\":\"Orthopolyomavirus sp. {reference}\",\"staxids\":\"{}\",\"rank\":\"superkingdom:Viruses; \
             clade:Varidnaviria; kingdom:Bamfordvirae; phylum:Nucleocytoviricota; class:Pokkesviricetes; order:Chitovirales; \
             family:Family{family}viridae; subfamily:Chordopoxvirinae; genus:Genus{}virus; species:Orthopolyomavirus \
             sp. {reference}\"}}",
            if random.random::<f64>() < 0.7 { "megablast" } else { "blastn" },
            self.sample,
            self.contig,
            f64::from(self.contig % 900) / 7.0,
            KINDS[reference % KINDS.len()],
            (f64::from(length) * random.random::<f64>()) as u32 + 28,
            10f64.powi(-random.random_range(5..180)),
            f64::from(length) * identity / 54.0,
            10_000 + reference * 3,
            reference % 1009,
        )
        .expect("a String takes everything");
    }
}
