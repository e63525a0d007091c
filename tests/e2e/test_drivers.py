def test_x(writing_wall):
    with writing_wall.connect() as c:
        print(c.execute("select count(*) from orders").fetchall())
        c.execute("insert into orders values (1000, 1, 'x')")
        print(c.execute("select count(*) from orders").fetchall())
