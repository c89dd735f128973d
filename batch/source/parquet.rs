//! Parquet: rows of one row group after the other, read as they are wanted.

use anyhow::{Context as _, Result};
use parquet::basic::{ConvertedType, LogicalType, TimeUnit, Type as Physical};
use parquet::file::reader::{ChunkReader, FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::record::reader::{ReaderIter, TreeBuilder};
use parquet::schema::types::Type;
use rows::Unreadable;
use rows::row::{Cells, Column, Kind};
use serde_json::{Number, Value};

use super::{Item, Position, Source, share_of};
use crate::guard::guarded;

/// Rows whose values are decoded together.
const ROWS_TOGETHER: usize = 1024;

pub(super) struct Parquet {
    file: Box<dyn FileReader>,
    columns: Vec<Column>,
    /// Which of them are times in nanoseconds.
    are_nanos: Vec<bool>,
    total: u64,
    /// The row group that is read next, and the rows of the one before.
    group: usize,
    rows_of_group: Option<ReaderIter>,
    rows: u64,
}

impl Parquet {
    pub(super) fn open(file: impl ChunkReader + 'static, at: &Position) -> Result<Self> {
        let file = guarded(|| Ok(SerializedFileReader::new(file)?)).context("it is no Parquet")?;
        let metadata = file.metadata().file_metadata();
        let fields = metadata.schema_descr().root_schema().get_fields();
        let columns = fields.iter().map(|field| Column::new(field.name(), kind_of(field)));
        let (columns, total) = (columns.collect(), metadata.num_rows().cast_unsigned());
        let are_nanos = fields.iter().map(|field| is_nanos(field)).collect();
        let (file, rows_of_group) = (Box::new(file), None);
        let mut parquet =
            Self { file, columns, are_nanos, total, group: 0, rows_of_group, rows: 0 };
        parquet.pass_to(at.rows)?;
        Ok(parquet)
    }

    /// Whole row groups are passed over without being read.
    fn pass_to(&mut self, rows: u64) -> Result<()> {
        let groups = self.file.metadata().row_groups();
        for group in groups {
            let num_rows = group.num_rows().cast_unsigned();
            if self.rows + num_rows > rows {
                break;
            }
            self.rows += num_rows;
            self.group += 1;
        }
        while self.rows < rows {
            self.next()?.context("it has fewer rows than an earlier run read")?;
        }
        Ok(())
    }

    fn next_row(&mut self) -> Result<Option<Vec<(String, Field)>>> {
        loop {
            if let Some(rows) = &mut self.rows_of_group {
                if let Some(row) = rows.next() {
                    return Ok(Some(row?.into_columns()));
                }
                self.rows_of_group = None;
            }
            if self.group == self.file.num_row_groups() {
                return Ok(None);
            }
            let schema = self.file.metadata().file_metadata().schema_descr_ptr();
            let group = self.file.get_row_group(self.group)?;
            self.group += 1;
            let builder = TreeBuilder::new().with_batch_size(ROWS_TOGETHER);
            self.rows_of_group = Some(builder.as_iter(schema, &*group)?);
        }
    }
}

impl Source for Parquet {
    fn columns(&self) -> Option<Vec<Column>> {
        Some(self.columns.clone())
    }

    fn next(&mut self) -> Result<Option<Item>> {
        let row = self.rows;
        let fields = guarded(|| self.next_row());
        let fields = fields.with_context(|| format!("row {} can't be read", row + 1))?;
        let Some(fields) = fields else { return Ok(None) };
        self.rows += 1;
        let after = Position { rows: self.rows, ..Position::default() };
        let cells = fields.into_iter().zip(&self.are_nanos);
        let cells = cells.map(|((name, field), is_nanos)| match field {
            Field::Long(nanos) if *is_nanos => (name, time_of(nanos)),
            field => (name, cell_of(field)),
        });
        // The row is there: only what its values say may be wrong.
        let cells = guarded(|| Ok(cells.collect::<Cells>())).map_err(|_| {
            Unreadable::new("it has a date, a time or a decimal that is out of range", b"")
        });
        Ok(Some(Item { cells, line: 0, after }))
    }

    fn share(&self) -> Option<f64> {
        share_of(self.rows, Some(self.total))
    }
}

fn kind_of(field: &Type) -> Kind {
    if !field.is_primitive() {
        return Kind::Text;
    }
    let info = field.get_basic_info();
    let is_number = match (info.logical_type_ref(), info.converted_type()) {
        (Some(LogicalType::Integer(integer)), _) => integer.is_signed || integer.bit_width < 64,
        (Some(_), _) => false,
        (None, converted) => matches!(
            converted,
            ConvertedType::NONE
                | ConvertedType::INT_8
                | ConvertedType::INT_16
                | ConvertedType::INT_32
                | ConvertedType::INT_64
                | ConvertedType::UINT_8
                | ConvertedType::UINT_16
                | ConvertedType::UINT_32
        ),
    };
    match field.get_physical_type() {
        Physical::BOOLEAN => Kind::Bool,
        Physical::INT32 | Physical::INT64 if is_number => Kind::Int,
        Physical::FLOAT | Physical::DOUBLE => Kind::Float,
        _ => Kind::Text,
    }
}

fn is_nanos(field: &Type) -> bool {
    let logical = field.get_basic_info().logical_type_ref();
    matches!(logical, Some(LogicalType::Timestamp(time)) if time.unit == TimeUnit::NANOS)
}

/// A time as the library tells those of other units; of this one it says the number.
fn time_of(nanos: i64) -> Value {
    let time = Field::TimestampMicros(nanos.div_euclid(1000)).to_json_value();
    match (time.as_str(), nanos.rem_euclid(1000)) {
        (Some(text), rest @ 1..) => text.replacen(" +", &format!("{rest:03} +"), 1).into(),
        _ => time,
    }
}

fn cell_of(field: Field) -> Value {
    match field {
        Field::Str(text) => Value::String(text),
        // With the digits that it has: of 64 bits 0.1 would be 0.10000000149011612.
        Field::Float(number) => {
            let number = number.to_string().parse::<f64>().ok().and_then(Number::from_f64);
            number.map_or(Value::Null, Value::Number)
        }
        other => other.to_json_value(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use parquet::basic::Repetition;
    use parquet::data_type::Int64Type;
    use parquet::file::writer::SerializedFileWriter;
    use serde_json::json;

    use super::super::testing::{read_all, said};
    use super::*;

    /// A file with a column of times.
    fn times(unit: TimeUnit, times: &[i64]) -> Bytes {
        let field = Type::primitive_type_builder("t", Physical::INT64)
            .with_repetition(Repetition::REQUIRED)
            .with_logical_type(Some(LogicalType::timestamp(true, unit)));
        let fields = vec![Arc::new(field.build().unwrap())];
        let schema = Type::group_type_builder("row").with_fields(fields).build().unwrap();
        let writer = SerializedFileWriter::new(Vec::<u8>::new(), Arc::new(schema), Arc::default());
        let mut writer = writer.unwrap();
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(times, None, None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.into_inner().unwrap().into()
    }

    #[test]
    fn times_are_told_in_every_unit_and_one_that_is_none_costs_its_row() {
        let read = |file: Bytes| {
            let items = read_all(|at| Box::new(Parquet::open(file.clone(), at).unwrap()) as _);
            items.iter().map(said).collect::<Vec<_>>()
        };
        let told = read(times(TimeUnit::NANOS, &[-1, 1_700_000_000_000_005_000]));
        assert_eq!(told[0], r#"{"t":"1969-12-31 23:59:59.999999999 +00:00"}"#);
        assert_eq!(told[1], r#"{"t":"2023-11-14 22:13:20.000005 +00:00"}"#);
        let told = read(times(TimeUnit::MICROS, &[i64::MAX, 0]));
        assert!(told[0].contains("out of range"), "{told:?}");
        assert_eq!(told[1], r#"{"t":"1970-01-01 00:00:00.000000 +00:00"}"#);
    }

    #[test]
    fn a_number_of_32_bits_has_no_more_digits_than_it_had() {
        assert_eq!(cell_of(Field::Float(0.1)), json!(0.1));
        assert_eq!(cell_of(Field::Float(-2.0)).to_string(), "-2.0");
        assert_eq!(cell_of(Field::Float(f32::MAX)), json!(3.4028235e38));
        assert_eq!(cell_of(Field::Float(f32::NAN)), Value::Null);
    }
}
