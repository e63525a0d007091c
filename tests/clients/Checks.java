// What agents' Java does all day with pgjdbc, each as a check of its own: "ok NAME" or "not ok NAME: why".

import java.io.StringReader;
import java.math.BigDecimal;
import java.sql.*;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Properties;
import org.postgresql.PGConnection;
import org.postgresql.copy.CopyManager;

public class Checks {
    interface Check {
        void run(Connection c) throws Exception;
    }

    static String url;
    static Properties login;
    static int failures = 0;

    static void check(String mode, String name, Check check) {
        Properties all = new Properties();
        all.putAll(login);
        for (String pair : mode.split(",")) {
            String[] parts = pair.split("=");
            all.setProperty(parts[0], parts[1]);
        }
        try (Connection c = DriverManager.getConnection(url, all)) {
            check.run(c);
            System.out.println("ok " + name + " [" + mode + "]");
        } catch (Throwable error) {
            failures++;
            System.out.println("not ok " + name + " [" + mode + "]: " + error);
        }
    }

    static void equal(Object found, Object expected) {
        if (!String.valueOf(found).equals(String.valueOf(expected))) {
            throw new AssertionError("found " + found + " instead of " + expected);
        }
    }

    static Object one(Connection c, String sql) throws SQLException {
        try (Statement s = c.createStatement(); ResultSet r = s.executeQuery(sql)) {
            r.next();
            return r.getObject(1);
        }
    }

    public static void main(String[] words) throws Exception {
        url = words[0];
        login = new Properties();
        login.setProperty("user", System.getenv("PGUSER"));
        login.setProperty("password", System.getenv("PGPASSWORD"));
        check("ApplicationName=setup", "tables are made", c -> {
            try (Statement s = c.createStatement()) {
                s.execute("DROP TABLE IF EXISTS jdbc_child, jdbc");
                s.execute("CREATE TABLE jdbc (id serial PRIMARY KEY, n int, v text, d numeric, b bytea, a int[], t timestamptz)");
                s.execute("CREATE TABLE jdbc_child (id int PRIMARY KEY, parent int REFERENCES jdbc DEFERRABLE)");
            }
        });
        for (String query : new String[] {"simple", "extended", "extendedForPrepared", "extendedCacheEverything"}) {
            for (String binary : new String[] {"true", "false"}) {
                all("preferQueryMode=" + query + ",binaryTransfer=" + binary + ",prepareThreshold=2");
            }
        }
        System.out.println(failures == 0 ? "all ok" : failures + " failed");
        System.exit(failures == 0 ? 0 : 1);
    }

    static void all(String mode) {
        check(mode, "all kinds of values go in and come back", c -> {
            try (PreparedStatement p = c.prepareStatement("INSERT INTO jdbc (n, v, d, b, a, t) VALUES (?, ?, ?, ?, ?, ?) RETURNING n, v, d, b, a, t")) {
                for (int i = 0; i < 6; i++) {
                    p.setInt(1, i);
                    p.setString(2, i == 3 ? null : "it's\t\\ \u00fc\u20ac\ud83d\ude00 " + i);
                    p.setBigDecimal(3, new BigDecimal("12345678901234567890.123456789"));
                    p.setBytes(4, new byte[] {0, 1, (byte) 0xff, '\\'});
                    p.setArray(5, c.createArrayOf("int4", new Integer[] {1, null, i}));
                    p.setTimestamp(6, Timestamp.valueOf("2026-01-31 12:34:56.123456"));
                    try (ResultSet r = p.executeQuery()) {
                        r.next();
                        equal(r.getInt(1), i);
                        equal(r.getString(2), i == 3 ? null : "it's\t\\ \u00fc\u20ac\ud83d\ude00 " + i);
                        equal(r.getBigDecimal(3), "12345678901234567890.123456789");
                        equal(Arrays.toString(r.getBytes(4)), "[0, 1, -1, 92]");
                        equal(Arrays.toString((Object[]) r.getArray(5).getArray()), "[1, null, " + i + "]");
                        equal(r.getTimestamp(6), "2026-01-31 12:34:56.123456");
                    }
                }
            }
        });
        check(mode, "a batch, and the keys that were made", c -> {
            try (PreparedStatement p = c.prepareStatement("INSERT INTO jdbc (n, v) VALUES (?, 'batch')", Statement.RETURN_GENERATED_KEYS)) {
                for (int i = 0; i < 300; i++) {
                    p.setInt(1, i);
                    p.addBatch();
                }
                equal(p.executeBatch().length, 300);
                int keys = 0;
                try (ResultSet r = p.getGeneratedKeys()) {
                    while (r.next()) {
                        keys++;
                    }
                }
                equal(keys, 300);
            }
        });
        check(mode, "a cursor of 50 rows at a time", c -> {
            c.setAutoCommit(false);
            try (Statement s = c.createStatement()) {
                s.setFetchSize(50);
                int rows = 0;
                try (ResultSet r = s.executeQuery("SELECT g FROM generate_series(1, 1234) g")) {
                    while (r.next()) {
                        equal(r.getInt(1), ++rows);
                    }
                }
                equal(rows, 1234);
            }
            c.commit();
        });
        check(mode, "savepoints, isolation and an error in between", c -> {
            c.setAutoCommit(false);
            c.setTransactionIsolation(Connection.TRANSACTION_SERIALIZABLE);
            equal(one(c, "SHOW transaction_isolation"), "serializable");
            Savepoint a = c.setSavepoint("a");
            try (Statement s = c.createStatement()) {
                s.executeUpdate("UPDATE jdbc SET n = 1/0");
                throw new AssertionError("no error");
            } catch (SQLException error) {
                equal(error.getSQLState(), "22012");
            }
            c.rollback(a);
            equal(one(c, "SELECT 1"), 1);
            c.rollback();
            c.setReadOnly(true);
            equal(one(c, "SHOW transaction_read_only"), "on");
            c.rollback();
        });
        check(mode, "an error ends a block until it is rolled back", c -> {
            c.setAutoCommit(false);
            for (String state : new String[] {"42P01", "25P02"}) {
                try (Statement s = c.createStatement()) {
                    s.executeQuery("SELECT * FROM not_there");
                    throw new AssertionError("no error");
                } catch (SQLException error) {
                    equal(error.getSQLState(), state);
                }
            }
            c.rollback();
            equal(one(c, "SELECT 2"), 2);
        });
        check(mode, "COPY in and out", c -> {
            CopyManager copy = c.unwrap(PGConnection.class).getCopyAPI();
            equal(copy.copyIn("COPY jdbc (n, v) FROM STDIN", new StringReader("7\tcopied\n8\t\\N\n")), 2);
            java.io.StringWriter out = new java.io.StringWriter();
            copy.copyOut("COPY (SELECT n, v FROM jdbc WHERE v = 'copied' LIMIT 1) TO STDOUT", out);
            equal(out, "7\tcopied\n");
            try {
                copy.copyIn("COPY jdbc (n) FROM STDIN", new StringReader("not a number\n"));
                throw new AssertionError("no error");
            } catch (SQLException error) {
                equal(error.getSQLState(), "22P02");
            }
            equal(one(c, "SELECT 3"), 3);
        });
        check(mode, "what the catalog says of the tables", c -> {
            DatabaseMetaData m = c.getMetaData();
            List<String> found = new ArrayList<>();
            try (ResultSet r = m.getColumns(null, "public", "jdbc", null)) {
                while (r.next()) {
                    found.add(r.getString("COLUMN_NAME") + " " + r.getString("TYPE_NAME"));
                }
            }
            equal(found, "[id serial, n int4, v text, d numeric, b bytea, a _int4, t timestamptz]");
            try (ResultSet r = m.getPrimaryKeys(null, "public", "jdbc")) {
                r.next();
                equal(r.getString("COLUMN_NAME"), "id");
            }
            try (ResultSet r = m.getImportedKeys(null, "public", "jdbc_child")) {
                r.next();
                equal(r.getString("PKTABLE_NAME") + " " + r.getShort("DEFERRABILITY"), "jdbc 6");
            }
            for (ResultSet r : new ResultSet[] {m.getTables(null, null, "jdbc%", null), m.getSchemas(), m.getTypeInfo(),
                    m.getIndexInfo(null, "public", "jdbc", false, false), m.getExportedKeys(null, "public", "jdbc"),
                    m.getTablePrivileges(null, "public", "jdbc"), m.getFunctions(null, "pg_catalog", "abs"),
                    m.getBestRowIdentifier(null, "public", "jdbc", 0, true), m.getClientInfoProperties()}) {
                equal(r.next(), true);
                r.close();
            }
        });
        check(mode, "a statement that takes too long is cancelled", c -> {
            try (Statement s = c.createStatement()) {
                s.setQueryTimeout(1);
                s.executeQuery("SELECT pg_sleep(20)");
                throw new AssertionError("it was not cancelled");
            } catch (SQLException error) {
                equal(error.getSQLState(), "57014");
            }
            equal(one(c, "SELECT 4"), 4);
        });
        check(mode, "an updatable result", c -> {
            c.setAutoCommit(false);
            try (Statement s = c.createStatement(ResultSet.TYPE_SCROLL_INSENSITIVE, ResultSet.CONCUR_UPDATABLE);
                    ResultSet r = s.executeQuery("SELECT id, n, v FROM jdbc ORDER BY id LIMIT 3")) {
                r.absolute(2);
                r.updateString("v", "updated");
                r.updateRow();
                r.refreshRow();
                equal(r.getString("v"), "updated");
            }
            c.rollback();
        });
        check(mode, "several results of one call", c -> {
            try (Statement s = c.createStatement()) {
                equal(s.execute("SELECT 1; UPDATE jdbc SET n = n WHERE id = -1; SELECT 2"), true);
                equal(s.getMoreResults(), false);
                equal(s.getUpdateCount(), 0);
                equal(s.getMoreResults(), true);
            }
        });
        check(mode, "notices and notifications", c -> {
            try (Statement s = c.createStatement()) {
                s.execute("DO $$ BEGIN RAISE WARNING 'beware'; END $$");
                equal(s.getWarnings().getMessage(), "beware");
                s.execute("LISTEN jdbc");
                s.execute("NOTIFY jdbc, 'hello'");
            }
            equal(c.unwrap(PGConnection.class).getNotifications(2000)[0].getParameter(), "hello");
        });
    }
}
