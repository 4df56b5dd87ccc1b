//! A parsed template into one that pays for each list it makes or uses: operands, arguments and
//! results pass through the filters of [`super::budget`].

use minijinja::machinery::Span;
use minijinja::machinery::ast::*;

use super::budget::{ADD, EACH, ITEM, OWN, REM, SLICE, SMALL, STORED};

/// Filters that apply a filter or a test, and so its arguments, to each item.
const FOR_EACH: [&str; 5] = ["map", "select", "reject", "selectattr", "rejectattr"];
/// Filters that do not walk through a list.
const AT_A_GLANCE: [&str; 4] = ["length", "count", "first", "last"];

/// `template` with every operand, argument and result paid for.
pub(super) fn statement<'a>(template: &Stmt<'a>) -> Stmt<'a> {
    match template {
        Stmt::Template(s) => Stmt::Template(at(s.span(), Template { children: body(&s.children) })),
        Stmt::EmitExpr(s) => Stmt::EmitExpr(at(s.span(), EmitExpr { expr: expression(&s.expr) })),
        Stmt::EmitRaw(s) => Stmt::EmitRaw(at(s.span(), EmitRaw { raw: s.raw })),
        Stmt::ForLoop(s) => Stmt::ForLoop(at(s.span(), for_loop(s))),
        Stmt::IfCond(s) => {
            let (true_body, false_body) = (body(&s.true_body), body(&s.false_body));
            Stmt::IfCond(at(s.span(), IfCond { expr: expression(&s.expr), true_body, false_body }))
        }
        Stmt::WithBlock(s) => {
            let assignments =
                s.assignments.iter().map(|(to, from)| (target(to), assigned(to, from))).collect();
            Stmt::WithBlock(at(s.span(), WithBlock { assignments, body: body(&s.body) }))
        }
        Stmt::Set(s) => Stmt::Set(at(
            s.span(),
            Set { target: target(&s.target), expr: assigned(&s.target, &s.expr) },
        )),
        Stmt::SetBlock(s) => {
            let filter = s.filter.as_ref().map(expression);
            Stmt::SetBlock(at(
                s.span(),
                SetBlock { target: target(&s.target), filter, body: body(&s.body) },
            ))
        }
        Stmt::AutoEscape(s) => Stmt::AutoEscape(at(
            s.span(),
            AutoEscape { enabled: operand(&s.enabled), body: body(&s.body) },
        )),
        Stmt::FilterBlock(s) => {
            let (filter, filter_span) = (expression(&s.filter), s.filter_span);
            Stmt::FilterBlock(at(
                s.span(),
                FilterBlock { filter, filter_span, body: body(&s.body) },
            ))
        }
        Stmt::Macro(s) => Stmt::Macro(declaration(s)),
        Stmt::CallBlock(s) => {
            let (call, macro_decl) = (called(&s.call), declaration(&s.macro_decl));
            Stmt::CallBlock(at(
                s.span(),
                CallBlock { call, call_expr_span: s.call_expr_span, macro_decl },
            ))
        }
        Stmt::Continue(s) => Stmt::Continue(at(s.span(), Continue)),
        Stmt::Break(s) => Stmt::Break(at(s.span(), Break)),
        Stmt::Do(s) => Stmt::Do(at(s.span(), Do { call: called(&s.call) })),
    }
}

fn at<T>(span: Span, node: T) -> Spanned<T> {
    Spanned::new(node, span)
}

fn body<'a>(statements: &[Stmt<'a>]) -> Vec<Stmt<'a>> {
    statements.iter().map(statement).collect()
}

fn for_loop<'a>(s: &ForLoop<'a>) -> ForLoop<'a> {
    ForLoop {
        target: target(&s.target),
        iter: filtered(EACH, assigned(&s.target, &s.iter), s.iter.span()),
        filter_expr: s.filter_expr.as_ref().map(expression),
        recursive: s.recursive,
        body: body(&s.body),
        else_body: body(&s.else_body),
    }
}

fn declaration<'a>(s: &Spanned<Macro<'a>>) -> Spanned<Macro<'a>> {
    let (args, defaults) =
        (s.args.iter().map(target).collect(), s.defaults.iter().map(operand).collect());
    at(s.span(), Macro { name: s.name, args, defaults, body: body(&s.body) })
}

/// A copy of what is assigned to.
fn target<'a>(to: &Expr<'a>) -> Expr<'a> {
    match to {
        Expr::List(list) => {
            Expr::List(at(list.span(), List { items: list.items.iter().map(target).collect() }))
        }
        Expr::GetAttr(e) => {
            Expr::GetAttr(at(e.span(), GetAttr { expr: target(&e.expr), name: e.name }))
        }
        other => expression(other),
    }
}

/// What is assigned. What may become an attribute is checked, for a namespace must not come to hold
/// itself.
fn assigned<'a>(to: &Expr<'a>, from: &Expr<'a>) -> Expr<'a> {
    match to {
        Expr::Var(_) => expression(from),
        _ => filtered(STORED, expression(from), from.span()),
    }
}

/// An expression of whose value nothing is yet used: what it makes is paid for, what it looks up is
/// not.
fn expression<'a>(e: &Expr<'a>) -> Expr<'a> {
    let span = e.span();
    match e {
        Expr::Var(e) => Expr::Var(at(span, Var { id: e.id })),
        Expr::Const(e) => Expr::Const(at(span, Const { value: e.value.clone() })),
        Expr::UnaryOp(e) => {
            Expr::UnaryOp(at(span, UnaryOp { op: copy(&e.op), expr: expression(&e.expr) }))
        }
        Expr::GetAttr(e) => {
            Expr::GetAttr(at(span, GetAttr { expr: expression(&e.expr), name: e.name }))
        }
        Expr::GetItem(e) => {
            let (expr, args) =
                (Some(expression(&e.expr)), vec![CallArg::Pos(operand(&e.subscript_expr))]);
            Expr::Filter(at(span, Filter { name: ITEM, expr, args }))
        }
        Expr::IfExpr(e) => {
            let (test_expr, true_expr) = (expression(&e.test_expr), expression(&e.true_expr));
            let false_expr = e.false_expr.as_ref().map(expression);
            Expr::IfExpr(at(span, IfExpr { test_expr, true_expr, false_expr }))
        }
        Expr::BinOp(e) => binary(e),
        Expr::Compare(e) => {
            let ops =
                e.ops.iter().map(|op| CompareOp { op: op.op, expr: operand(&op.expr) }).collect();
            Expr::Compare(at(span, Compare { expr: operand(&e.expr), ops }))
        }
        Expr::Test(e) => {
            // Most of those without arguments look at no more than a value's kind.
            let is_glance = e.args.is_empty() && !["lower", "upper"].contains(&e.name);
            let expr = if is_glance { expression(&e.expr) } else { operand(&e.expr) };
            Expr::Test(at(span, Test { name: e.name, expr, args: arguments(&e.args, OWN) }))
        }
        Expr::Slice(e) => slice(e),
        Expr::Filter(e) => owned(Expr::Filter(at(span, filter(e)))),
        Expr::Call(e) => owned(Expr::Call(called(e))),
        Expr::List(e) => {
            owned(Expr::List(at(span, List { items: e.items.iter().map(operand).collect() })))
        }
        Expr::Tuple(e) => {
            owned(Expr::Tuple(at(span, Tuple { items: e.items.iter().map(operand).collect() })))
        }
        Expr::Map(e) => {
            let (keys, values) =
                (e.keys.iter().map(operand).collect(), e.values.iter().map(operand).collect());
            owned(Expr::Map(at(span, Map { keys, values })))
        }
    }
}

/// An expression whose value is used whole.
fn operand<'a>(e: &Expr<'a>) -> Expr<'a> {
    match e {
        Expr::Var(_) | Expr::GetAttr(_) | Expr::GetItem(_) | Expr::IfExpr(_) => {
            owned(expression(e))
        }
        Expr::BinOp(op) if matches!(op.op, BinOpKind::ScAnd | BinOpKind::ScOr) => {
            owned(expression(e))
        }
        _ => expression(e),
    }
}

fn binary<'a>(e: &Spanned<BinOp<'a>>) -> Expr<'a> {
    let node = |left, right| Expr::BinOp(at(e.span(), BinOp { op: e.op, left, right }));
    let by_filter = |name| {
        let (expr, args) = (Some(operand(&e.left)), vec![CallArg::Pos(operand(&e.right))]);
        Expr::Filter(at(e.span(), Filter { name, expr, args }))
    };
    match e.op {
        BinOpKind::ScAnd | BinOpKind::ScOr => node(expression(&e.left), expression(&e.right)),
        BinOpKind::Rem => owned(by_filter(REM)),
        BinOpKind::Add if is_safe(&e.left) || is_safe(&e.right) => owned(by_filter(ADD)),
        BinOpKind::Add | BinOpKind::Mul => owned(node(operand(&e.left), operand(&e.right))),
        _ => node(operand(&e.left), operand(&e.right)),
    }
}

/// Whether `e` is marked as safe, or a sum of what is.
fn is_safe(e: &Expr<'_>) -> bool {
    match e {
        Expr::Filter(filter) => ["safe", "e", "escape"].contains(&filter.name),
        Expr::BinOp(sum) if matches!(sum.op, BinOpKind::Add) => {
            is_safe(&sum.right) || is_safe(&sum.left)
        }
        _ => false,
    }
}

/// The engine's slices are lazy: one of one of one and so on would be walked through all of them.
fn slice<'a>(e: &Spanned<Slice<'a>>) -> Expr<'a> {
    let bound = |bound: &Option<Expr<'a>>| match bound {
        Some(bound) => CallArg::Pos(operand(bound)),
        None => CallArg::Pos(Expr::Const(at(e.span(), Const { value: ().into() }))),
    };
    let args = vec![bound(&e.start), bound(&e.stop), bound(&e.step)];
    Expr::Filter(at(e.span(), Filter { name: SLICE, expr: Some(operand(&e.expr)), args }))
}

fn filter<'a>(e: &Filter<'a>) -> Filter<'a> {
    let pay = if FOR_EACH.contains(&e.name) { SMALL } else { OWN };
    let value = if AT_A_GLANCE.contains(&e.name) { expression } else { operand };
    Filter { name: e.name, expr: e.expr.as_ref().map(value), args: arguments(&e.args, pay) }
}

fn called<'a>(e: &Spanned<Call<'a>>) -> Spanned<Call<'a>> {
    let expr = match &e.expr {
        // The value of a method.
        Expr::GetAttr(of) => {
            Expr::GetAttr(at(of.span(), GetAttr { expr: operand(&of.expr), name: of.name }))
        }
        other => expression(other),
    };
    at(e.span(), Call { expr, args: arguments(&e.args, OWN) })
}

fn arguments<'a>(args: &[CallArg<'a>], pay: &'static str) -> Vec<CallArg<'a>> {
    let paid =
        |e: &Expr<'a>| if pay == OWN { operand(e) } else { filtered(pay, expression(e), e.span()) };
    let argument = |arg: &CallArg<'a>| match arg {
        CallArg::Pos(e) => CallArg::Pos(paid(e)),
        CallArg::Kwarg(name, e) => CallArg::Kwarg(name, paid(e)),
        CallArg::PosSplat(e) => CallArg::PosSplat(paid(e)),
        CallArg::KwargSplat(e) => CallArg::KwargSplat(paid(e)),
    };
    args.iter().map(argument).collect()
}

fn owned(e: Expr<'_>) -> Expr<'_> {
    let span = e.span();
    filtered(OWN, e, span)
}

/// Constants need no filter: the parser makes them of a few bytes.
fn filtered<'a>(name: &'static str, e: Expr<'a>, span: Span) -> Expr<'a> {
    match e {
        Expr::Const(_) => e,
        _ => Expr::Filter(at(span, Filter { name, expr: Some(e), args: Vec::new() })),
    }
}

fn copy(op: &UnaryOpKind) -> UnaryOpKind {
    match op {
        UnaryOpKind::Not => UnaryOpKind::Not,
        UnaryOpKind::Neg => UnaryOpKind::Neg,
    }
}
