//! Parquet: columns of optional values, a row group at a time.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use parquet::basic::{Compression, LogicalType, Repetition, Type as Physical};
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::Type;
use rows::row::{Cells, Column, Kind, check_known, memory_of, text_of};
use serde_json::Value;

use super::{Sink, Target};

/// Rows and bytes of a row group, which is in memory until it is written.
const MAX_ROWS: usize = 50_000;
const MAX_BYTES: usize = 16 << 20;

pub(super) struct Parquet {
    writer: SerializedFileWriter<Target>,
    columns: Vec<Column>,
    rows: Vec<Cells>,
    num_bytes: usize,
}

impl Parquet {
    pub(super) fn open(target: Target, columns: &[Column]) -> Result<Self> {
        let fields = columns.iter().map(|column| {
            let (physical, logical) = match column.kind {
                Kind::Bool => (Physical::BOOLEAN, None),
                Kind::Int => (Physical::INT64, None),
                Kind::Float => (Physical::DOUBLE, None),
                Kind::Null | Kind::Text => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
            };
            let field = Type::primitive_type_builder(&column.name, physical)
                .with_repetition(Repetition::OPTIONAL)
                .with_logical_type(logical);
            Ok(Arc::new(field.build()?))
        });
        let fields = fields.collect::<Result<_>>()?;
        let schema = Type::group_type_builder("row").with_fields(fields).build()?;
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY);
        let properties = Arc::new(properties.build());
        let writer = SerializedFileWriter::new(target, Arc::new(schema), properties)?;
        Ok(Self { writer, columns: columns.to_vec(), rows: Vec::new(), num_bytes: 0 })
    }

    fn write_group(&mut self) -> Result<()> {
        let mut group = self.writer.next_row_group()?;
        for column in &self.columns {
            let cells: Vec<&Value> =
                self.rows.iter().map(|row| row.get(&column.name).unwrap_or(&Value::Null)).collect();
            let is_there: Vec<i16> = cells.iter().map(|cell| i16::from(!cell.is_null())).collect();
            let cells = cells.into_iter().filter(|cell| !cell.is_null());
            let levels = Some(&is_there[..]);
            let mut writer = group.next_column()?.context("a column is missing")?;
            match writer.untyped() {
                ColumnWriter::BoolColumnWriter(writer) => {
                    let values: Option<Vec<_>> = cells.map(Value::as_bool).collect();
                    writer.write_batch(&of_kind(column, values)?, levels, None)?;
                }
                ColumnWriter::Int64ColumnWriter(writer) => {
                    let values: Option<Vec<_>> = cells.map(Value::as_i64).collect();
                    writer.write_batch(&of_kind(column, values)?, levels, None)?;
                }
                ColumnWriter::DoubleColumnWriter(writer) => {
                    let values: Option<Vec<_>> = cells.map(Value::as_f64).collect();
                    writer.write_batch(&of_kind(column, values)?, levels, None)?;
                }
                ColumnWriter::ByteArrayColumnWriter(writer) => {
                    let texts =
                        cells.map(|cell| ByteArray::from(text_of(cell).as_bytes().to_vec()));
                    writer.write_batch(&texts.collect::<Vec<_>>(), levels, None)?;
                }
                _ => bail!("no column is made of such values"),
            }
            writer.close()?;
        }
        group.close()?;
        self.rows.clear();
        self.num_bytes = 0;
        Ok(())
    }
}

fn of_kind<T>(column: &Column, values: Option<Vec<T>>) -> Result<Vec<T>> {
    values.with_context(|| format!("column {:?} has a cell of another kind", column.name))
}

impl Sink for Parquet {
    fn write(&mut self, row: u64, cells: Cells) -> Result<()> {
        if let Err(name) = check_known(&self.columns, &cells) {
            bail!("row {} has a column {name:?}, which the file has not", row + 1);
        }
        self.num_bytes += cells.values().map(memory_of).sum::<usize>();
        self.rows.push(cells);
        if self.rows.len() == MAX_ROWS || self.num_bytes >= MAX_BYTES {
            self.write_group()?;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        if !self.rows.is_empty() {
            self.write_group()?;
        }
        self.writer.into_inner().context("the file can't be ended")?.complete()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::sink::Whole;

    #[test]
    fn rows_whose_cells_hold_much_are_written_before_they_are_many() {
        let dir = tempfile::tempdir().unwrap();
        let target = Target::File(Whole::create(&dir.path().join("a.parquet")).unwrap());
        let mut sink = Parquet::open(target, &[Column::new("a", Kind::Text)]).unwrap();
        for row in 0..3 {
            let cells = json!({"a": {"b": ["x".repeat(MAX_BYTES / 2)]}});
            sink.write(row, cells.as_object().unwrap().clone()).unwrap();
        }
        assert_eq!(sink.rows.len(), 1);
    }
}
