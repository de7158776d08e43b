//! Rows as Parquet: how each column is encoded, row groups that several threads encode, and the file that they end in.

use std::io;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::{ArrowColumnChunk, ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves};
use parquet::basic::{Compression as Codec, Encoding, GzipLevel, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::ColumnPath;

use super::decode::BATCH;
use super::spec::{Compression, Plan};
use crate::dataset::Kind;
use crate::error::{Error, Result};

/// Batches that wait for a thread that encodes.
const BATCHES_IN_FLIGHT: usize = 1;

/// A dictionary of texts beyond this is given up for plain values. The usual limit, 1 MiB, spills the names of taxa.
const TEXT_DICTIONARY: usize = 8 * 1024 * 1024;

/// The same for numbers: with more distinct ones, of eight bytes each, they are smaller and faster without a dictionary.
const NUMBER_DICTIONARY: usize = 64 * 1024;

/// Rows of one page. Pages end with batches, so this is a multiple of a batch.
const PAGE_ROWS: usize = 6 * BATCH;

/// The same where few rows of a file are wanted: readers decompress all pages before the one that they want, and none after
/// it. Zstandard finds less in less, so files grow.
const SHORT_PAGE_ROWS: usize = BATCH;

/// A page that compression leaves larger than this share of its size stays as it is where few rows of a file are wanted.
const WORTH_DECOMPRESSING: f64 = 0.86;

/// Distinct values of a looked-up column in one row group that its Bloom filter is made for, and its rate of errors:
/// about 24 KiB a filter.
const BLOOM_VALUES: u64 = 20_000;
const BLOOM_ERRORS: f64 = 0.01;

/// Text statistics are cut to this many bytes: enough to tell samples and taxa apart.
const STATISTICS: usize = 64;

/// How the files of one export are written.
#[derive(Clone)]
pub struct Layout {
    schema: SchemaRef,
    properties: WriterProperties,
    row_groups: Arc<ArrowRowGroupWriterFactory>,
    threads: usize,
}

impl Layout {
    /// The layout of a plan; `notes` are kept in each file's metadata, and so many threads encode.
    ///
    /// # Errors
    /// A schema that Parquet does not know.
    pub fn new(plan: &Plan, notes: &[(&str, String)], threads: usize) -> Result<Self> {
        let properties = properties(plan, notes)?;
        let writer = ArrowWriter::try_new(io::sink(), Arc::clone(&plan.schema), Some(properties.clone()));
        let (_, row_groups) = writer.and_then(ArrowWriter::into_serialized_writer).map_err(fault)?;
        Ok(Self { schema: Arc::clone(&plan.schema), properties, row_groups: Arc::new(row_groups), threads })
    }

    /// Begins a row group.
    ///
    /// # Errors
    /// A fault of the library, or no room for threads.
    pub fn row_group(&self) -> Result<RowGroup> {
        let writers = self.row_groups.create_column_writers(0).map_err(fault)?;
        RowGroup::new(&self.schema, writers, self.threads)
    }

    /// Begins a file.
    ///
    /// # Errors
    /// What the output says.
    pub fn file<W: Write + Send>(&self, output: W) -> Result<File<W>> {
        let writer = ArrowWriter::try_new(output, Arc::clone(&self.schema), Some(self.properties.clone()));
        let (writer, _) = writer.and_then(ArrowWriter::into_serialized_writer).map_err(fault)?;
        Ok(File { writer })
    }
}

/// A row group that is being encoded and compressed in memory, by several threads with some of the columns each.
///
/// A column's dictionary and compressor take most of a megabyte, however few its rows: one row group at a time, with
/// all threads at work on it, takes less memory than one for each thread.
pub struct RowGroup {
    encoders: Vec<ColumnEncoder>,
    columns: usize,
}

/// A thread that encodes some columns.
struct ColumnEncoder {
    batches: SyncSender<RecordBatch>,
    memory: Arc<AtomicUsize>,
    thread: JoinHandle<Result<Vec<(usize, ArrowColumnChunk)>>>,
}

impl RowGroup {
    fn new(schema: &SchemaRef, writers: Vec<ArrowColumnWriter>, threads: usize) -> Result<Self> {
        let columns = writers.len();
        let mut shares: Vec<Vec<(usize, ArrowColumnWriter)>> = (0..threads).map(|_| Vec::new()).collect();
        for (column, writer) in writers.into_iter().enumerate() {
            shares[column % threads].push((column, writer));
        }
        let encoders = shares.into_iter().map(|share| ColumnEncoder::start(Arc::clone(schema), share));
        Ok(Self { encoders: encoders.collect::<Result<_>>()?, columns })
    }

    /// Adds rows.
    pub fn write(&self, batch: &RecordBatch) {
        for encoder in &self.encoders {
            // One that has ended early says why at the end.
            drop(encoder.batches.send(batch.clone()));
        }
    }

    /// Bytes that it takes in memory, but for what its threads still have before them.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.encoders.iter().map(|encoder| encoder.memory.load(Ordering::Relaxed)).sum()
    }

    /// The encoded columns.
    ///
    /// # Errors
    /// A fault of the library.
    pub fn finish(self) -> Result<Vec<ArrowColumnChunk>> {
        let mut chunks: Vec<Option<ArrowColumnChunk>> = (0..self.columns).map(|_| None).collect();
        // All are told first that there is no more, so that they compress their last pages side by side.
        let threads: Vec<_> = self.encoders.into_iter().map(|encoder| encoder.thread).collect();
        for thread in threads {
            let share = thread.join().map_err(|_| Error::Internal("an encoder panicked".into()))?;
            share?.into_iter().for_each(|(column, chunk)| chunks[column] = Some(chunk));
        }
        chunks
            .into_iter()
            .map(|chunk| chunk.ok_or_else(|| Error::Internal("a column was not encoded".into())))
            .collect()
    }
}

impl ColumnEncoder {
    fn start(schema: SchemaRef, mut writers: Vec<(usize, ArrowColumnWriter)>) -> Result<Self> {
        let (batches, input) = sync_channel::<RecordBatch>(BATCHES_IN_FLIGHT);
        let memory = Arc::new(AtomicUsize::new(0));
        let total = Arc::clone(&memory);
        let work = move || {
            for batch in input {
                for (column, writer) in &mut writers {
                    for leaf in compute_leaves(schema.field(*column), batch.column(*column)).map_err(fault)? {
                        writer.write(&leaf).map_err(fault)?;
                    }
                }
                total.store(writers.iter().map(|(_, writer)| writer.memory_size()).sum(), Ordering::Relaxed);
            }
            writers.into_iter().map(|(column, writer)| Ok((column, writer.close().map_err(fault)?))).collect()
        };
        let thread = std::thread::Builder::new().name("encoder".into()).spawn(work);
        let thread = thread.map_err(|error| Error::Environment(format!("no thread can be started: {error}")))?;
        Ok(Self { batches, memory, thread })
    }
}

/// A file that row groups are appended to.
pub struct File<W: Write + Send> {
    writer: SerializedFileWriter<W>,
}

impl<W: Write + Send> File<W> {
    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.writer.bytes_written() as u64
    }

    /// Appends an encoded row group.
    ///
    /// # Errors
    /// What the output says.
    pub fn append(&mut self, columns: Vec<ArrowColumnChunk>) -> Result<()> {
        let mut row_group = self.writer.next_row_group().map_err(fault)?;
        for column in columns {
            column.append_to_row_group(&mut row_group).map_err(fault)?;
        }
        row_group.close().map_err(fault)?;
        Ok(())
    }

    /// Writes the footer, which says how many rows there are.
    ///
    /// # Errors
    /// What the output says.
    pub fn finish(mut self, rows: u64) -> Result<W> {
        self.writer.append_key_value_metadata(KeyValue::new("nvd.rows".to_owned(), rows.to_string()));
        self.writer.into_inner().map_err(fault)
    }
}

fn properties(plan: &Plan, notes: &[(&str, String)]) -> Result<WriterProperties> {
    let codec = match plan.compression {
        Compression::Zstd => Codec::ZSTD(ZstdLevel::try_new(plan.level).map_err(fault)?),
        Compression::Gzip => {
            let level = u32::try_from(plan.level).unwrap_or_default();
            Codec::GZIP(GzipLevel::try_new(level).map_err(fault)?)
        }
        Compression::Snappy => Codec::SNAPPY,
        Compression::Lz4 => Codec::LZ4_RAW,
        Compression::None => Codec::UNCOMPRESSED,
    };
    let notes = notes.iter().map(|(key, value)| KeyValue::new((*key).to_owned(), value.clone())).collect();
    let (page_rows, worthwhile) =
        if plan.is_searched { (SHORT_PAGE_ROWS, WORTH_DECOMPRESSING) } else { (PAGE_ROWS, 1.0) };
    let mut properties = WriterProperties::builder()
        .set_writer_version(WriterVersion::PARQUET_2_0)
        .set_created_by(format!("nvd-support-car version {}", env!("CARGO_PKG_VERSION")))
        .set_compression(codec)
        .set_dictionary_page_size_limit(TEXT_DICTIONARY)
        .set_data_page_row_count_limit(page_rows)
        .set_data_page_v2_compression_ratio_threshold(worthwhile)
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_statistics_truncate_length(Some(STATISTICS))
        .set_column_index_truncate_length(Some(STATISTICS))
        .set_key_value_metadata(Some(notes));
    for column in &plan.columns {
        let path = || ColumnPath::new(vec![column.name.clone()]);
        properties = properties.set_column_dictionary_enabled(path(), column.repeats);
        if matches!(column.kind, Kind::Int | Kind::Float) {
            properties = properties.set_column_dictionary_page_size_limit(path(), NUMBER_DICTIONARY);
        }
        if matches!(column.kind, Kind::Int | Kind::Timestamp) {
            properties = properties.set_column_encoding(path(), Encoding::DELTA_BINARY_PACKED);
        }
        if column.lookup {
            properties = properties
                .set_column_bloom_filter_enabled(path(), true)
                .set_column_bloom_filter_fpp(path(), BLOOM_ERRORS)
                .set_column_bloom_filter_max_ndv(path(), BLOOM_VALUES);
        }
    }
    Ok(properties.build())
}

fn fault(error: ParquetError) -> Error {
    Error::Internal(format!("writing Parquet failed: {error}"))
}
