//! PostgreSQL's binary COPY format into Arrow batches.
//!
//! Source: <https://www.postgresql.org/docs/current/sql-copy.html>, "Binary Format". The protocol promises no row
//! boundaries, so decoding can pause within a row and go on with the next bytes.
//!
//! PostgreSQL takes its time for each value, so that some columns come together as one:
//!
//! - A column that hardly any row fills costs as much as any other. Such columns come as one record, which is null in all
//!   rows but those few.
//! - Columns of numbers that every row is expected to fill come by four: as the four numbers of a line segment. That is null
//!   where one of them is, and holds whole numbers below 2^53 only. A COPY that turns out to have others is
//!   [`uneven`](Decoder::is_uneven): the rows that it has given are right, the rest must be read in another way.

use std::sync::Arc;

use arrow::array::builder::NullBufferBuilder;
use arrow::array::{
    ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
    new_null_array,
};
use arrow::buffer::Buffer;
use arrow::buffer::{BooleanBuffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::SchemaRef;
use bytes::Bytes;

use super::spec::Plan;
use crate::dataset::Kind;
use crate::error::{Error, Result};

/// Rows of one batch.
pub const BATCH: usize = 4096;

/// Text of one column in one batch at most, so that 32-bit offsets suffice and memory stays bounded.
const BATCH_TEXT: usize = 16 * 1024 * 1024;

/// The signature and the flags, before the length of the header's extension.
const HEADER: usize = 15;

/// Microseconds from 1970-01-01, where Unix begins to count, to 2000-01-01, where PostgreSQL does.
const POSTGRES_EPOCH: i64 = 946_684_800_000_000;

/// Whole numbers below this are exact as floats.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// Turns the bytes of one COPY into batches.
pub struct Decoder {
    schema: SchemaRef,
    /// Columns that are fields of their own, in the order of a row.
    dense: Vec<Values>,
    /// Columns that come by four.
    quads: Vec<Vec<Values>>,
    /// Columns that come as one record.
    sparse: Vec<Values>,
    /// The records of sparse columns in the batch under way, with their rows.
    records: Vec<(usize, Vec<u8>)>,
    /// Nulls for a batch, for each sparse column.
    nulls: Vec<ArrayRef>,
    rows: usize,
    /// The next field of the row under way; none between rows.
    field: Option<usize>,
    /// Bytes that did not hold a whole field.
    carry: Vec<u8>,
    has_header: bool,
    has_ended: bool,
    is_uneven: bool,
    text_bytes: usize,
}

impl Decoder {
    /// A decoder of the COPY of a plan.
    #[must_use]
    pub fn new(plan: &Plan) -> Self {
        let values = |position: usize| Values::new(position, plan.columns[position].kind);
        Self {
            schema: Arc::clone(&plan.schema),
            dense: plan.dense().map(values).collect(),
            quads: plan.quads.iter().map(|quad| quad.iter().copied().map(values).collect()).collect(),
            sparse: plan.sparse.iter().copied().map(values).collect(),
            records: Vec::new(),
            nulls: Vec::new(),
            rows: 0,
            field: None,
            carry: Vec::new(),
            has_header: false,
            has_ended: false,
            is_uneven: false,
            text_bytes: 0,
        }
    }

    /// Whether numbers did not come as expected. From then on bytes are only passed over, to the end of the COPY.
    #[must_use]
    pub const fn is_uneven(&self) -> bool {
        self.is_uneven
    }

    /// Takes the next bytes, and gives a batch when one is full.
    ///
    /// # Errors
    /// Bytes that are no COPY of these columns.
    pub fn feed(&mut self, bytes: &Bytes) -> Result<Option<RecordBatch>> {
        if self.is_uneven {
            return Ok(None);
        }
        if self.carry.is_empty() {
            let used = self.decode(bytes)?;
            self.carry.extend_from_slice(&bytes[used..]);
        } else {
            let mut data = std::mem::take(&mut self.carry);
            data.extend_from_slice(bytes);
            let used = self.decode(&data)?;
            self.carry.extend_from_slice(&data[used..]);
        }
        // The row in which that is noticed is cut off.
        if self.is_uneven {
            return Ok(None);
        }
        if self.field.is_none() && (self.rows >= BATCH || self.text_bytes >= BATCH_TEXT) {
            return self.take_batch().map(Some);
        }
        Ok(None)
    }

    /// The last batch, if rows are left.
    ///
    /// # Errors
    /// A COPY that was cut off.
    pub fn finish(mut self) -> Result<Option<RecordBatch>> {
        if !self.has_ended {
            return Err(mismatch("it ended early"));
        }
        if self.rows == 0 { Ok(None) } else { self.take_batch().map(Some) }
    }

    /// Decodes whole fields, and answers with the number of bytes they took.
    fn decode(&mut self, data: &[u8]) -> Result<usize> {
        let mut rest = data;
        if !self.has_header {
            let Some(extension) = rest.get(HEADER..HEADER + 4) else { return Ok(0) };
            let extension = usize::try_from(number(extension)).map_err(|_| mismatch("its header is damaged"))?;
            let Some(after) = rest.get(HEADER + 4 + extension..) else { return Ok(0) };
            if !rest.starts_with(b"PGCOPY\n\xFF\r\n\0") {
                return Err(mismatch("it does not begin as the binary format does"));
            }
            self.has_header = true;
            rest = after;
        }
        let fields = self.dense.len() + self.quads.len() + usize::from(!self.sparse.is_empty());
        loop {
            let mut field = match self.field {
                Some(field) => field,
                None => {
                    let Some((count, after)) = rest.split_first_chunk::<2>() else { break };
                    let count = i16::from_be_bytes(*count);
                    rest = after;
                    if count == -1 {
                        self.has_ended = true;
                        break;
                    }
                    if usize::try_from(count) != Ok(fields) {
                        return Err(mismatch("a row has another number of fields"));
                    }
                    0
                }
            };
            while field < fields {
                let Some((length, after)) = rest.split_first_chunk::<4>() else { break };
                let length = i32::from_be_bytes(*length);
                if length == -1 {
                    // A record of sparse columns that is null is not even noted.
                    if let Some(column) = self.dense.get_mut(field) {
                        column.push_null();
                    } else if field < self.dense.len() + self.quads.len() {
                        self.is_uneven = true;
                        return Ok(data.len());
                    }
                    rest = after;
                } else {
                    let length = usize::try_from(length).map_err(|_| mismatch("a field has no length"))?;
                    let Some((value, after)) = after.split_at_checked(length) else { break };
                    self.take_value(field, value)?;
                    if self.is_uneven {
                        return Ok(data.len());
                    }
                    rest = after;
                }
                field += 1;
            }
            if field < fields {
                self.field = Some(field);
                break;
            }
            self.field = None;
            self.rows += 1;
        }
        Ok(data.len() - rest.len())
    }

    #[inline]
    fn take_value(&mut self, field: usize, value: &[u8]) -> Result<()> {
        if let Some(column) = self.dense.get_mut(field) {
            self.text_bytes += column.push(value)?;
        } else if let Some(quad) = self.quads.get_mut(field - self.dense.len()) {
            self.is_uneven = !push_quad(quad, value)?;
        } else {
            self.text_bytes += value.len();
            self.records.push((self.rows, value.to_vec()));
        }
        Ok(())
    }

    fn take_batch(&mut self) -> Result<RecordBatch> {
        let rows = std::mem::take(&mut self.rows);
        self.text_bytes = 0;
        let records = std::mem::take(&mut self.records);
        self.fill_sparse(rows, &records)?;
        let mut arrays: Vec<(usize, ArrayRef)> = Vec::with_capacity(self.schema.fields().len());
        for column in self.dense.iter_mut().chain(self.quads.iter_mut().flatten()) {
            arrays.push((column.position, column.take()?));
        }
        for (column, nulls) in self.sparse.iter_mut().zip(&self.nulls) {
            let array = if records.is_empty() { nulls.slice(0, rows) } else { column.take()? };
            arrays.push((column.position, array));
        }
        arrays.sort_unstable_by_key(|(position, _)| *position);
        let arrays = arrays.into_iter().map(|(_, array)| array).collect();
        RecordBatch::try_new(Arc::clone(&self.schema), arrays).map_err(|error| mismatch(&error.to_string()))
    }

    /// Makes sure that there are nulls enough, and spreads the records of a batch over the sparse columns, if any.
    fn fill_sparse(&mut self, rows: usize, records: &[(usize, Vec<u8>)]) -> Result<()> {
        if self.nulls.first().is_none_or(|nulls| nulls.len() < rows) {
            let kinds = self.sparse.iter().map(|column| self.schema.field(column.position).data_type());
            self.nulls = kinds.map(|kind| new_null_array(kind, rows.max(BATCH))).collect();
        }
        if records.is_empty() {
            return Ok(());
        }
        let mut next = 0;
        for (row, record) in records {
            self.skip_sparse(row - next);
            next = row + 1;
            push_record(&mut self.sparse, record)?;
        }
        self.skip_sparse(rows - next);
        Ok(())
    }

    fn skip_sparse(&mut self, rows: usize) {
        for column in &mut self.sparse {
            (0..rows).for_each(|_| column.push_null());
        }
    }
}

/// The four numbers of a line segment; false where one of them is a whole number that a float may have rounded.
#[inline]
fn push_quad(quad: &mut [Values], value: &[u8]) -> Result<bool> {
    let numbers: [u8; 32] = fixed(value)?;
    for (column, number) in quad.iter_mut().zip(numbers.as_chunks().0) {
        let number = f64::from_be_bytes(*number);
        column.nulls.append_non_null();
        match &mut column.data {
            Data::Float(values) => values.push(number),
            #[expect(clippy::cast_possible_truncation, reason = "a whole number below 2^53")]
            Data::Int(values) if number.abs() < EXACT => values.push(number as i64),
            _ => return Ok(false),
        }
    }
    Ok(true)
}

/// A record as PostgreSQL's `record_send` writes it: the number of values, then the type, length and bytes of each.
fn push_record(columns: &mut [Values], record: &[u8]) -> Result<()> {
    let cut = || mismatch("a record is cut off");
    let (count, mut rest) = record.split_first_chunk::<4>().ok_or_else(cut)?;
    if usize::try_from(i32::from_be_bytes(*count)) != Ok(columns.len()) {
        return Err(mismatch("a record has another number of values"));
    }
    for column in columns {
        let (head, after) = rest.split_first_chunk::<8>().ok_or_else(cut)?;
        let length = number(&head[4..]);
        if length == -1 {
            column.push_null();
            rest = after;
            continue;
        }
        let length = usize::try_from(length).map_err(|_| cut())?;
        let (value, after) = after.split_at_checked(length).ok_or_else(cut)?;
        column.push(value)?;
        rest = after;
    }
    Ok(())
}

fn number(bytes: &[u8]) -> i32 {
    bytes.try_into().map_or(-1, i32::from_be_bytes)
}

fn mismatch(reason: &str) -> Error {
    Error::Internal(format!("PostgreSQL's COPY is not what was asked for: {reason}"))
}

/// The values of one column in the batch under way.
struct Values {
    /// Where it stands in the schema.
    position: usize,
    kind: Kind,
    nulls: NullBufferBuilder,
    data: Data,
}

enum Data {
    Bool(Vec<bool>),
    Int(Vec<i64>),
    Float(Vec<f64>),
    Text { offsets: Vec<i32>, bytes: Vec<u8> },
}

impl Values {
    fn new(position: usize, kind: Kind) -> Self {
        let data = match kind {
            Kind::Bool => Data::Bool(Vec::new()),
            Kind::Int | Kind::Timestamp => Data::Int(Vec::new()),
            Kind::Float => Data::Float(Vec::new()),
            Kind::Text | Kind::Json => Data::Text { offsets: vec![0], bytes: Vec::new() },
        };
        Self { position, kind, nulls: NullBufferBuilder::new(BATCH), data }
    }

    #[inline]
    fn push_null(&mut self) {
        self.nulls.append_null();
        match &mut self.data {
            Data::Bool(values) => values.push(false),
            Data::Int(values) => values.push(0),
            Data::Float(values) => values.push(0.0),
            Data::Text { offsets, bytes } => offsets.push(offset(bytes)),
        }
    }

    /// Takes a value, and answers with the number of bytes of text it is.
    #[inline]
    fn push(&mut self, value: &[u8]) -> Result<usize> {
        self.nulls.append_non_null();
        match (&mut self.data, self.kind) {
            (Data::Bool(values), _) => values.push(fixed::<1>(value)? != [0]),
            (Data::Int(values), Kind::Timestamp) => {
                let micros = i64::from_be_bytes(fixed(value)?).checked_add(POSTGRES_EPOCH);
                values.push(micros.ok_or_else(|| mismatch("a time lies beyond the years that Arrow knows"))?);
            }
            (Data::Int(values), _) => values.push(i64::from_be_bytes(fixed(value)?)),
            (Data::Float(values), _) => values.push(f64::from_be_bytes(fixed(value)?)),
            (Data::Text { offsets, bytes }, kind) => {
                let text = match (kind, value) {
                    (Kind::Json, [1, text @ ..]) => text,
                    (Kind::Json, _) => return Err(mismatch("a jsonb value has an unknown version")),
                    _ => value,
                };
                bytes.extend_from_slice(text);
                offsets.push(offset(bytes));
                return Ok(text.len());
            }
        }
        Ok(0)
    }

    fn take(&mut self) -> Result<ArrayRef> {
        let nulls: Option<NullBuffer> = self.nulls.finish();
        Ok(match &mut self.data {
            Data::Bool(values) => Arc::new(BooleanArray::new(BooleanBuffer::from(std::mem::take(values)), nulls)),
            Data::Int(values) => {
                let values = ScalarBuffer::from(std::mem::replace(values, Vec::with_capacity(BATCH)));
                if self.kind == Kind::Timestamp {
                    Arc::new(TimestampMicrosecondArray::new(values, nulls).with_timezone("UTC"))
                } else {
                    Arc::new(Int64Array::new(values, nulls))
                }
            }
            Data::Float(values) => {
                let values = ScalarBuffer::from(std::mem::replace(values, Vec::with_capacity(BATCH)));
                Arc::new(Float64Array::new(values, nulls))
            }
            Data::Text { offsets, bytes } => {
                let offsets = OffsetBuffer::new(std::mem::replace(offsets, first_offset()).into());
                let capacity = bytes.len();
                let bytes = Buffer::from_vec(std::mem::replace(bytes, Vec::with_capacity(capacity)));
                // Checks that all of it is UTF-8, once for the batch.
                let array = StringArray::try_new(offsets, bytes, nulls);
                Arc::new(array.map_err(|error| mismatch(&error.to_string()))?)
            }
        })
    }
}

fn first_offset() -> Vec<i32> {
    let mut offsets = Vec::with_capacity(BATCH + 1);
    offsets.push(0);
    offsets
}

/// The end of the text so far. A batch ends long before 2 GiB: a single value of PostgreSQL is at most 1 GiB.
fn offset(bytes: &[u8]) -> i32 {
    i32::try_from(bytes.len()).unwrap_or(i32::MAX)
}

fn fixed<const N: usize>(value: &[u8]) -> Result<[u8; N]> {
    value.try_into().map_err(|_| mismatch("a field has another size than its type"))
}
