//! Join tokens as they are kept: never the secret, only the key that verifies a proof of it; and
//! the nodes that are revoked.

pub mod command;
pub mod revoke;

use std::collections::HashSet;

use jiff::Timestamp;
use protocol::NodeId;
use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use transport::TokenKey;

use crate::store::{Store, StoreError};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TokenRecord {
    /// What a proof names it by.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// Where its nodes belong.
    pub pool: String,
    /// What verifies a proof.
    pub key: TokenKey,
    /// So many nodes may use it.
    pub max_uses: u32,
    /// So many have.
    pub num_uses: u32,
    pub created: Timestamp,
    /// From when on it is good no longer.
    pub expires: Timestamp,
    /// Since when it is taken back.
    pub revoked: Option<Timestamp>,
}

/// Whether a token is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenStanding {
    Valid,
    /// Its time is over.
    Expired,
    /// Whoever may use it has.
    UsedUp,
    Revoked,
}

impl TokenStanding {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Expired => "expired",
            Self::UsedUp => "used up",
            Self::Revoked => "revoked",
        }
    }
}

impl TokenRecord {
    /// Whether it is good.
    pub(crate) fn standing(&self, now: Timestamp) -> TokenStanding {
        if self.revoked.is_some() {
            TokenStanding::Revoked
        } else if now >= self.expires {
            TokenStanding::Expired
        } else if self.num_uses >= self.max_uses {
            TokenStanding::UsedUp
        } else {
            TokenStanding::Valid
        }
    }

    fn read(row: &SqliteRow) -> Result<Self, sqlx::Error> {
        let key: Vec<u8> = row.try_get("key")?;
        let key = TokenKey::from_bytes(&key);
        let revoked: Option<i64> = row.try_get("revoked_ms")?;
        Ok(Self {
            id: row.try_get("id")?,
            name: row.try_get("name")?,
            pool: row.try_get("pool")?,
            key: key.ok_or_else(|| sqlx::Error::Decode("a key has 32 bytes".into()))?,
            max_uses: row.try_get("max_uses")?,
            num_uses: row.try_get("num_uses")?,
            created: time(row.try_get("created_ms")?)?,
            expires: time(row.try_get("expires_ms")?)?,
            revoked: revoked.map(time).transpose()?,
        })
    }
}

fn time(milliseconds: i64) -> Result<Timestamp, sqlx::Error> {
    Timestamp::from_millisecond(milliseconds).map_err(|cause| sqlx::Error::Decode(cause.into()))
}

impl Store {
    /// Keeps a token that was made.
    ///
    /// # Errors
    /// When it can't be written.
    pub(crate) async fn add_token(&self, token: TokenRecord) -> Result<(), StoreError> {
        self.write(move |database| {
            Box::pin(async move {
                sqlx::query(
                    "INSERT INTO tokens (id, name, pool, key, max_uses, created_ms, expires_ms)
                     VALUES (?, ?, ?, ?, ?, ?, ?)",
                )
                .bind(&token.id)
                .bind(&token.name)
                .bind(&token.pool)
                .bind(token.key.as_bytes())
                .bind(token.max_uses)
                .bind(token.created.as_millisecond())
                .bind(token.expires.as_millisecond())
                .execute(database)
                .await?;
                Ok(())
            })
        })
        .await
    }

    /// All tokens, the oldest first.
    ///
    /// # Errors
    /// When they can't be read.
    pub(crate) async fn tokens(&self) -> Result<Vec<TokenRecord>, StoreError> {
        let query = sqlx::query(
            "SELECT *, (SELECT count(*) FROM token_uses WHERE token = id) AS num_uses
             FROM tokens ORDER BY created_ms, id",
        );
        let rows = query.fetch_all(self.reader()).await?;
        Ok(rows.iter().map(TokenRecord::read).collect::<Result<_, _>>()?)
    }

    /// The token of this name, or whose id this is, is good no longer. How many there were.
    ///
    /// # Errors
    /// When that can't be written.
    pub(crate) async fn revoke_token(
        &self,
        name: String,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        self.write(move |database| {
            Box::pin(async move {
                let update = sqlx::query(
                    "UPDATE tokens SET revoked_ms = coalesce(revoked_ms, ?1)
                     WHERE id = ?2 OR name = ?2",
                );
                let now = now.as_millisecond();
                Ok(update.bind(now).bind(name).execute(database).await?.rows_affected())
            })
        })
        .await
    }

    /// The token of this id.
    ///
    /// # Errors
    /// When it can't be read.
    pub(crate) async fn token(&self, id: &str) -> Result<Option<TokenRecord>, StoreError> {
        let mut reader = self.reader().acquire().await?;
        Ok(find(&mut reader, id).await?)
    }

    /// Notes that a node with this key uses the token, unless it is good no longer: how it stands
    /// then. A node that asks again with the same key uses it no second time.
    ///
    /// # Errors
    /// When that can't be read or written.
    pub(crate) async fn use_token(
        &self,
        id: &str,
        node: NodeId,
        node_key: &[u8],
        now: Timestamp,
    ) -> Result<TokenStanding, StoreError> {
        let (id, node_key) = (id.to_owned(), node_key.to_owned());
        let node = node.0.cast_signed();
        self.write(move |database| {
            Box::pin(async move {
                let Some(token) = find(database, &id).await? else {
                    return Ok(TokenStanding::Revoked);
                };
                let standing = token.standing(now);
                let used = sqlx::query(
                    "SELECT 1 FROM token_uses WHERE token = ? AND node = ? AND node_key = ?",
                );
                let used = used.bind(&id).bind(node).bind(&node_key);
                let has_used = used.fetch_optional(&mut *database).await?.is_some();
                if has_used && standing == TokenStanding::UsedUp {
                    return Ok(TokenStanding::Valid);
                }
                if standing == TokenStanding::Valid && !has_used {
                    sqlx::query("INSERT INTO token_uses VALUES (?, ?, ?, ?)")
                        .bind(&id)
                        .bind(node)
                        .bind(&node_key)
                        .bind(now.as_millisecond())
                        .execute(database)
                        .await?;
                }
                Ok(standing)
            })
        })
        .await
    }

    /// This node may come in no more, whatever it shows. A coordinator that runs ends its session
    /// within a second.
    ///
    /// # Errors
    /// When that can't be written.
    pub(crate) async fn revoke_node(&self, node: NodeId, now: Timestamp) -> Result<(), StoreError> {
        self.write(move |database| {
            Box::pin(async move {
                sqlx::query("INSERT OR IGNORE INTO revoked_nodes VALUES (?, ?)")
                    .bind(node.0.cast_signed())
                    .bind(now.as_millisecond())
                    .execute(database)
                    .await?;
                Ok(())
            })
        })
        .await
    }

    /// All that are revoked.
    ///
    /// # Errors
    /// When they can't be read.
    pub(crate) async fn revoked_nodes(&self) -> Result<HashSet<NodeId>, StoreError> {
        let query = sqlx::query_scalar("SELECT node FROM revoked_nodes");
        let nodes: Vec<i64> = query.fetch_all(self.reader()).await?;
        Ok(nodes.into_iter().map(|node| NodeId(node.cast_unsigned())).collect())
    }
}

async fn find(
    database: &mut SqliteConnection,
    id: &str,
) -> Result<Option<TokenRecord>, sqlx::Error> {
    let query = sqlx::query(
        "SELECT *, (SELECT count(*) FROM token_uses WHERE token = id) AS num_uses
         FROM tokens WHERE id = ?",
    );
    query.bind(id).fetch_optional(database).await?.as_ref().map(TokenRecord::read).transpose()
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan as _;

    use super::*;

    /// Goal: uses are counted once for each node and key, and a token that isn't good any more is
    /// used by nobody.
    #[tokio::test]
    async fn a_token_is_used_as_often_as_it_may_and_a_node_that_asks_again_uses_it_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        let now = Timestamp::from_millisecond(1_700_000_000_000).unwrap();
        let token = TokenRecord {
            id: "abcdef".into(),
            name: "rack 1".into(),
            pool: "gpu-a".into(),
            key: TokenKey::from_bytes(&[7; 32]).unwrap(),
            max_uses: 2,
            num_uses: 0,
            created: now,
            expires: now + 15.minutes(),
            revoked: None,
        };
        store.add_token(token.clone()).await.unwrap();
        assert_eq!(store.tokens().await.unwrap(), std::slice::from_ref(&token));
        let by = async |store: &Store, node, key: &[u8], now| {
            store.use_token("abcdef", NodeId(node), key, now).await.unwrap()
        };
        for (node, key, expected) in [
            (1, b"one", TokenStanding::Valid),
            (1, b"one", TokenStanding::Valid),
            (u64::MAX, b"two", TokenStanding::Valid),
            (1, b"one", TokenStanding::Valid),
            // The same name with another key is another node.
            (1, b"new", TokenStanding::UsedUp),
            (3, b"one", TokenStanding::UsedUp),
        ] {
            assert_eq!(by(&store, node, key, now).await, expected, "{node} {key:?}");
        }
        assert_eq!(store.token("abcdef").await.unwrap().unwrap().num_uses, 2);
        // It is on the disk.
        let store = Store::open(dir.path()).await.unwrap();
        assert_eq!(by(&store, 4, b"any", now).await, TokenStanding::UsedUp);
        assert_eq!(by(&store, 1, b"one", now + 15.minutes()).await, TokenStanding::Expired);
        assert_eq!(store.revoke_token("nobody".into(), now).await.unwrap(), 0);
        assert_eq!(store.revoke_token("rack 1".into(), now).await.unwrap(), 1);
        assert_eq!(by(&store, 1, b"one", now).await, TokenStanding::Revoked);
        assert_eq!(
            store.use_token("other", NodeId(1), b"", now).await.unwrap(),
            TokenStanding::Revoked
        );

        store.revoke_node(NodeId(u64::MAX), now).await.unwrap();
        store.revoke_node(NodeId(u64::MAX), now).await.unwrap();
        assert_eq!(store.revoked_nodes().await.unwrap(), HashSet::from([NodeId(u64::MAX)]));
    }
}
