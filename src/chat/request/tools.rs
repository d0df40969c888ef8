//! Translates tools, the choice of tools and the format of an answer, which Responses nests one
//! level less.

use crate::chat::json::{Fields, Object, invalid, list, unsupported};
use crate::error::Error;

/// The parameters of a function that takes none.
const NONE: &[u8] = br#"{"type":"object","properties":{}}"#;

/// Writes one of the `tools`.
pub fn tool(out: &mut Vec<u8>, raw: &[u8], place: String) -> Result<(), Error> {
    let fields = Fields::of(raw, place)?;
    let kind = kind(&fields)?;
    fields.only(&[&["type", kind]])?;
    let inner = fields.inner(kind)?;
    let mut tool = Object::open(out);
    tool.plain("type", kind).raw("name", inner.needed("name")?);
    tool.maybe("description", inner.get("description"));
    if kind == "function" {
        inner.only(&[&["name", "description", "parameters", "strict"]])?;
        // Responses takes a function without `strict` for a strict one.
        tool.raw("parameters", inner.get("parameters").unwrap_or(NONE))
            .raw("strict", inner.get("strict").unwrap_or(b"false"));
    } else {
        inner.only(&[&["name", "description", "format"]])?;
        if inner.get("format").is_some() {
            grammar(tool.begin("format"), &inner.inner("format")?)?;
        }
    }
    tool.close();
    Ok(())
}

fn kind(fields: &Fields<'_>) -> Result<&'static str, Error> {
    match fields.word("type")?.as_deref() {
        Some("function") => Ok("function"),
        Some("custom") => Ok("custom"),
        Some(_) => Err(unsupported(&fields.at("type"))),
        None => Err(invalid(&fields.at("type"), "is missing")),
    }
}

/// Writes the input format of a custom tool.
fn grammar(out: &mut Vec<u8>, format: &Fields<'_>) -> Result<(), Error> {
    format.only(&[&["type", "grammar"]])?;
    let mut object = Object::open(out);
    object.raw("type", format.needed("type")?);
    if format.get("grammar").is_some() {
        let grammar = format.inner("grammar")?;
        grammar.only(&[&["definition", "syntax"]])?;
        object
            .maybe("definition", grammar.get("definition"))
            .maybe("syntax", grammar.get("syntax"));
    }
    object.close();
    Ok(())
}

/// Writes the `tool_choice`.
pub fn choice(out: &mut Vec<u8>, raw: &[u8], place: String) -> Result<(), Error> {
    if raw.starts_with(b"\"") {
        out.extend_from_slice(raw);
        return Ok(());
    }
    let fields = Fields::of(raw, place)?;
    if fields.word("type")?.as_deref() != Some("allowed_tools") {
        return write_named_tool(out, &fields);
    }
    fields.only(&[&["type", "allowed_tools"]])?;
    let allowed = fields.inner("allowed_tools")?;
    allowed.only(&[&["mode", "tools"]])?;
    let mut object = Object::open(out);
    object.plain("type", "allowed_tools").raw("mode", allowed.needed("mode")?);
    list(object.begin("tools"), allowed.elements("tools")?, |out, (place, raw)| {
        write_named_tool(out, &Fields::of(raw, place)?)
    })?;
    object.close();
    Ok(())
}

/// Writes a tool by its name.
fn write_named_tool(out: &mut Vec<u8>, fields: &Fields<'_>) -> Result<(), Error> {
    let kind = kind(fields)?;
    fields.only(&[&["type", kind]])?;
    let inner = fields.inner(kind)?;
    inner.only(&[&["name"]])?;
    let mut object = Object::open(out);
    object.plain("type", kind).raw("name", inner.needed("name")?);
    object.close();
    Ok(())
}

/// Writes the `response_format`.
pub fn format(out: &mut Vec<u8>, format: &Fields<'_>) -> Result<(), Error> {
    let kind = format.word("type")?;
    let mut object = Object::open(out);
    match kind.as_deref() {
        Some(kind @ ("text" | "json_object")) => {
            format.only(&[&["type"]])?;
            object.plain("type", kind);
        }
        Some("json_schema") => {
            format.only(&[&["type", "json_schema"]])?;
            let inner = format.inner("json_schema")?;
            inner.only(&[&["name", "description", "schema", "strict"]])?;
            object.plain("type", "json_schema").raw("name", inner.needed("name")?);
            object
                .maybe("description", inner.get("description"))
                .maybe("schema", inner.get("schema"))
                .raw("strict", inner.get("strict").unwrap_or(b"false"));
        }
        Some(_) => return Err(unsupported(&format.at("type"))),
        None => return Err(invalid(&format.at("type"), "is missing")),
    }
    object.close();
    Ok(())
}
