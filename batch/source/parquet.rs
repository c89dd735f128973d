//! Parquet: rows of one row group after the other, read as they are wanted.

use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Context as _, Result, anyhow};
use parquet::basic::{ConvertedType, LogicalType, Type as Physical};
use parquet::file::reader::{ChunkReader, FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::record::reader::{ReaderIter, TreeBuilder};
use parquet::schema::types::Type;
use rows::row::{Cells, Column, Kind};
use serde_json::Value;

use super::{Item, Position, Source, share_of};

/// Rows whose values are decoded together.
const ROWS_TOGETHER: usize = 1024;

pub(super) struct Parquet {
    file: Box<dyn FileReader>,
    columns: Vec<Column>,
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
        let file = Box::new(file);
        let mut parquet = Self { file, columns, total, group: 0, rows_of_group: None, rows: 0 };
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
        let cells = guarded(|| {
            let Some(fields) = self.next_row()? else { return Ok(None) };
            let cells = fields.into_iter().map(|(name, field)| (name, cell_of(field)));
            Ok(Some(cells.collect::<Cells>()))
        });
        let cells = cells.with_context(|| format!("row {} can't be read", row + 1))?;
        let Some(cells) = cells else { return Ok(None) };
        self.rows += 1;
        let after = Position { rows: self.rows, ..Position::default() };
        Ok(Some(Item { cells: Ok(cells), line: 0, after }))
    }

    fn share(&self) -> Option<f64> {
        share_of(self.rows, Some(self.total))
    }
}

/// The library panics on some files that are broken; that is their fault, not ours.
fn guarded<T>(read: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("unknown");
        Err(anyhow!("the file is broken: {said}"))
    })
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

fn cell_of(field: Field) -> Value {
    match field {
        Field::Str(text) => Value::String(text),
        other => other.to_json_value(),
    }
}
