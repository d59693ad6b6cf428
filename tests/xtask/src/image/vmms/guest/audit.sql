-- Transfers, those that are missing among them, accounts whose transfers do not explain their balance, SQLite's own look.
SELECT count(*) || ' transfers, ' || (max(id) - count(*)) || ' missing, ' ||
    (SELECT count(*) FROM account WHERE balance <> 1000
        + (SELECT coalesce(sum(amount), 0) FROM transfer WHERE target = account.id)
        - (SELECT coalesce(sum(amount), 0) FROM transfer WHERE source = account.id)) ||
    ' unexplained, ' || (SELECT integrity_check FROM pragma_integrity_check)
FROM transfer;
