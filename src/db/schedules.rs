//! Which tick of each schedule has been acted upon, over all replicas.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};

use crate::error::Result;

/// The last tick of a schedule that was acted upon. One that is new counts as acted upon at `now`, and so does one whose last
/// tick is more than a day ahead: the clock of a replica was wrong, and it would not run for as long.
///
/// # Errors
/// A database out of reach.
pub async fn last_tick(pool: &PgPool, name: &str, now: DateTime<Utc>) -> Result<DateTime<Utc>> {
    let begin = sqlx::query(
        "-- schedules.begin
        INSERT INTO schedules AS s (name, last_tick) VALUES ($1, $2)
        ON CONFLICT (name) DO UPDATE SET last_tick = $2 WHERE s.last_tick > $2 + interval '1 day'",
    );
    begin.bind(name).bind(now).execute(pool).await?;
    let tick = sqlx::query_scalar("-- schedules.last_tick\nSELECT last_tick FROM schedules WHERE name = $1");
    Ok(tick.bind(name).fetch_one(pool).await?)
}

/// A schedule was changed: what was due before `now` counts as acted upon, and what is due from then on is made up for.
///
/// # Errors
/// A database out of reach.
pub async fn change(connection: &mut PgConnection, name: &str, now: DateTime<Utc>) -> Result<()> {
    sqlx::query(
        "-- schedules.change
        INSERT INTO schedules (name, last_tick) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET last_tick = $2",
    )
    .bind(name)
    .bind(now)
    .execute(connection)
    .await?;
    Ok(())
}

/// Forgets a schedule: one of that name begins anew.
///
/// # Errors
/// A database out of reach.
pub async fn forget(connection: &mut PgConnection, name: &str) -> Result<()> {
    sqlx::query("-- schedules.forget\nDELETE FROM schedules WHERE name = $1").bind(name).execute(connection).await?;
    Ok(())
}

/// Takes a tick, in the transaction that acts upon it; false when another replica did.
///
/// # Errors
/// A database out of reach.
pub async fn take(connection: &mut PgConnection, name: &str, tick: DateTime<Utc>) -> Result<bool> {
    let taken =
        sqlx::query("-- schedules.take\nUPDATE schedules SET last_tick = $2 WHERE name = $1 AND last_tick < $2")
            .bind(name)
            .bind(tick)
            .execute(connection)
            .await?;
    Ok(taken.rows_affected() == 1)
}
