"""Each public data set in its raw format, written small by hand, through a real server or from a folder."""

import gzip
import json
import zipfile

import pytest

from tesserec.data import sources
from tesserec.data.sources import amazon, movielens, movietweetings, online_retail, retailrocket, steam, yelp
from tesserec.errors import DataError


def events_of(log):
    """(user, item, time, value) of each event."""
    users, items = log.users.ids.to_pylist(), log.items.ids.to_pylist()
    values = [None] * len(log) if log.value_E is None else log.value_E.tolist()
    columns = (log.user_E.tolist(), log.item_E.tolist(), log.time_E.tolist(), values)
    return [(users[u], items[i], time, value) for u, i, time, value in zip(*columns, strict=True)]


def lines(*records, literal=False):
    return gzip.compress("".join((repr(r) if literal else json.dumps(r)) + "\n" for r in records).encode())


def test_online_retail_comes_with_the_package(caplog):
    log, catalog = sources.load("online_retail")
    assert (len(log), len(log.users), len(catalog)) == (393_627, 4_361, 3_775)
    assert log.kinds == ("purchase", "return")
    assert log.positive_kinds == ("purchase",)
    assert int(log.is_positive_E.sum()) == 385_188
    assert len(set(log.session_E[log.is_positive_E].tolist())) == 18_377
    assert float(log.value_E[~log.is_positive_E].max()) < 0
    assert catalog.titles[0] == "INFLATABLE POLITICAL GLOBE"
    assert catalog.frame["price"][0] == 0.85
    assert log.items is catalog.items
    assert "Online Retail: CC BY 4.0" in caplog.text


def test_online_retail_from_another_folder(tmp_path):
    with pytest.raises(DataError, match=r"no file at .*items\.parquet"):
        online_retail.load(folder=tmp_path)
    with pytest.raises(DataError, match=r"online_retail has no data set 'x': choose one of online-retail"):
        online_retail.load("x")


REVIEWS = [
    {"reviewerID": "A", "asin": "0001", "overall": 5.0, "unixReviewTime": 20, "helpful": [0, 1], "reviewText": "x"},
    {"reviewerID": "A", "asin": "B2", "overall": 1.0, "unixReviewTime": 10, "style": {"Size": "1"}},
]


def serve_amazon(server, year, reviews, meta):
    """The version ``year`` as the server has it."""
    version = amazon.VERSIONS[year]
    (server.folder / version.reviews.format("Toys").rsplit("/")[-1]).write_bytes(reviews)
    (server.folder / version.items.format("Toys").rsplit("/")[-1]).write_bytes(meta)
    moved = {field: server.url + getattr(version, field).rsplit("/")[-1] for field in ("reviews", "items")}
    return {year: amazon.Version(**{**version.__dict__, **moved})}


def test_amazon_2014_has_literals_and_paths_of_categories(server, caplog):
    meta = lines(
        {"asin": "B2", "title": "It's", "brand": "Acme", "price": 9.5, "categories": [["Toys", "Cars"], ["Gifts"]]},
        {"asin": "B3", "title": "never reviewed"},
        {"asin": "0001", "description": "Plain.", "categories": [[]]},
        literal=True,
    )
    versions = serve_amazon(server, "2014", lines(*REVIEWS), meta)
    log, catalog = amazon.load("2014/Toys", versions=versions)
    assert events_of(log) == [("A", "B2", 10, 1.0), ("A", "0001", 20, 5.0)]
    assert catalog.items.ids.to_pylist() == ["0001", "B2"]
    assert catalog.texts == ["Plain.", "It's. Brand: Acme. Categories: Toys, Cars"]
    assert catalog.frame["price"].to_list() == [None, 9.5]
    assert server.paths == ["/reviews_Toys_5.json.gz", "/meta_Toys.json.gz"]
    assert "Amazon 2014/Toys: no open licence" in caplog.text


def test_amazon_2018_has_json_and_prices_in_text(server):
    meta = lines(
        {
            "asin": "B2",
            "title": "Car",
            "category": ["Toys", "Cars"],
            "description": ["Red.", "Fast."],
            "price": "$1,012.99",
        },
        {"asin": "B2", "title": "Car again"},
        {"asin": "0001", "title": "Doll", "category": [], "description": "", "price": "$1.00 - $5.00"},
    )
    versions = serve_amazon(server, "2018", lines(*REVIEWS), meta)
    log, catalog = amazon.load("2018/Toys", server.folder, versions=versions)
    assert len(log) == 2
    assert catalog.texts == ["Doll", "Car. Categories: Toys, Cars. Red. Fast."]
    assert catalog.frame["price"].to_list() == [None, 1012.99]
    assert server.paths == []


@pytest.mark.parametrize("year", ["2023", "2023-raw"])
def test_amazon_2023_has_parents_and_milliseconds(server, year):
    rows = [("U", "P1", 4.0, 1_600_000_002_000), ("U", "P2", 2.0, 1_600_000_001_000)]
    if year == "2023":
        text = "user_id,parent_asin,rating,timestamp\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)
        reviews = gzip.compress(text.encode())
    else:
        names = ("user_id", "parent_asin", "rating", "timestamp")
        reviews = lines(*({**dict(zip(names, row, strict=True)), "asin": "variant", "images": []} for row in rows))
    meta = lines(
        {"parent_asin": "P1", "title": "One", "store": "Shop", "categories": ["A"], "price": None, "details": {}}
    )
    versions = serve_amazon(server, year, reviews, meta)
    log, catalog = amazon.load(f"{year}/Toys", versions=versions)
    assert events_of(log) == [("U", "P2", 1_600_000_001, 2.0), ("U", "P1", 1_600_000_002, 4.0)]
    assert catalog.texts == ["One. Brand: Shop. Categories: A", ""]


def test_amazon_refuses_names_and_files_that_are_not_its_own(server, tmp_path):
    for name in ("Beauty", "2014/"):
        with pytest.raises(
            DataError, match=rf"amazon has no data set '{name}': give VERSION/Category, such as 2014/Beauty"
        ):
            amazon.load(name)
    with pytest.raises(DataError, match=r"amazon has no data set '2015': choose one of 2014, 2018, 2023, 2023-raw"):
        amazon.load("2015/Toys")
    versions = serve_amazon(server, "2014", gzip.compress(b'{"asin": 5}\n'), lines())
    with pytest.raises(DataError, match=r"reviews_Toys_5\.json\.gz is not readable as reviews: .*; get the file again"):
        amazon.load("2014/Toys", versions=versions)


def zipped(server, name, files):
    with zipfile.ZipFile(server.folder / name, "w") as archive:
        for inner, content in files.items():
            archive.writestr(inner, content)


def test_movielens_100k(server, caplog):
    flags = "|".join("1" if genre in (3, 5) else "0" for genre in range(19))
    files = {
        "ml-100k/u.data": "196\t242\t3\t881250949\n186\t302\t4\t891717742\n",
        "ml-100k/u.item": f"242|Kolya (1996)|24-Jan-1997||http://x|{flags}\n302|Misérables|||u|{flags}\n".encode(
            "latin-1"
        ),
    }
    zipped(server, "ml-100k.zip", files)
    log, catalog = movielens.load("100k", url=server.url)
    assert events_of(log) == [(186, 302, 891_717_742, 4.0), (196, 242, 881_250_949, 3.0)]
    assert catalog.texts == ["Kolya (1996). Categories: Animation, Comedy", "Misérables. Categories: Animation, Comedy"]
    assert "MovieLens 100k: GroupLens licence: research use" in caplog.text


@pytest.mark.parametrize(("name", "inner", "encoding"), [("1m", "ml-1m", "latin-1"), ("10m", "ml-10M100K", "utf-8")])
def test_movielens_with_colons(server, name, inner, encoding):
    files = {
        f"{inner}/ratings.dat": "1::1193::5::978300760\n1::661::3.5::978302109\n",
        f"{inner}/movies.dat": '661::Été: "A"::Animation|Musical\n1193::Cuckoo\'s Nest::Drama\n'.encode(encoding),
    }
    zipped(server, f"ml-{name}.zip", files)
    log, catalog = movielens.load(name, server.folder)
    assert events_of(log) == [(1, 1193, 978_300_760, 5.0), (1, 661, 978_302_109, 3.5)]
    assert catalog.titles == ['Été: "A"', "Cuckoo's Nest"]
    assert catalog.frame["categories"].to_list() == [["Animation", "Musical"], ["Drama"]]


def test_movielens_with_headers(server):
    files = {
        "ml-latest-small/ratings.csv": "userId,movieId,rating,timestamp\n1,2,4.5,100\n",
        "ml-latest-small/movies.csv": 'movieId,title,genres\n2,"Big, The",Drama|War\n',
    }
    zipped(server, "ml-latest-small.zip", files)
    log, catalog = sources.load("movielens/latest-small", server.folder)
    assert events_of(log) == [(1, 2, 100, 4.5)]
    assert catalog.texts == ["Big, The. Categories: Drama, War"]


@pytest.mark.parametrize(("name", "place"), [("latest", "latest"), ("10K", "snapshots/10K")])
def test_movietweetings(server, caplog, name, place):
    folder = server.folder / place
    folder.mkdir(parents=True)
    (folder / "ratings.dat").write_text("1::0111161::10::1362082919\n2::68646::8::1362082900\n")
    (folder / "movies.dat").write_text("0111161::The Redemption (1994)::Crime|Drama\n0068646::No Genre (1972)\n")
    log, catalog = movietweetings.load(name, url=server.url)
    assert events_of(log) == [(1, 111_161, 1_362_082_919, 10.0), (2, 68_646, 1_362_082_900, 8.0)]
    assert catalog.texts == ["No Genre (1972)", "The Redemption (1994). Categories: Crime, Drama"]
    assert f"MovieTweetings {name}: MIT" in caplog.text
    assert events_of(movietweetings.load(name, folder)[0]) == events_of(log)


def test_yelp(tmp_path, caplog):
    reviews = [
        {"review_id": "r", "user_id": "u", "business_id": "b", "stars": 4.0, "text": "…", "date": "2018-07-07 22:09:11"}
    ]
    shop = {"business_id": "b", "name": "Café", "city": "Reno", "categories": "Food, Bars", "is_open": 0, "hours": None}
    for file, rows in (("review", reviews), ("business", [shop])):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"yelp_academic_dataset_{file}.json").write_text(text)
    log, catalog = yelp.load(folder=tmp_path)
    assert events_of(log) == [("u", "b", 1_531_001_351, 4.0)]
    assert catalog.texts == ["Café. Categories: Food, Bars"]
    assert catalog.available_N.tolist() == [False]
    assert catalog.frame["city"].to_list() == ["Reno"]
    assert "Yelp: Yelp Dataset Terms of Use" in caplog.text
    with pytest.raises(
        DataError, match=r"no yelp_academic_dataset_review\.json in None: get it from https://business\.yelp"
    ):
        sources.load("yelp")


def test_steam_reviews(server, caplog):
    reviews = [
        {"username": "Ann", "product_id": "10", "hours": 2.5, "date": "2017-12-17", "text": "it's"},
        {"username": "Ann", "product_id": "7", "date": "2017-12-16"},
    ]
    games = [
        {"id": "7", "app_name": "Seven", "developer": "Dev", "genres": ["Action"], "price": 4.99},
        {"title": "no id"},
        {"id": "10", "title": "Ten", "tags": ["Indie"], "price": "Free"},
    ]
    (server.folder / "steam_reviews.json.gz").write_bytes(lines(*reviews, literal=True))
    (server.folder / "steam_games.json.gz").write_bytes(lines(*games, literal=True))
    log, catalog = steam.load(url=server.url)
    assert events_of(log) == [("Ann", "7", 1_513_382_400, 0.0), ("Ann", "10", 1_513_468_800, 2.5)]
    assert catalog.texts == ["Ten. Categories: Indie", "Seven. Brand: Dev. Categories: Action"]
    assert catalog.frame["price"].to_list() == [None, 4.99]
    assert "Steam reviews: no licence stated" in caplog.text


def test_steam_200k_has_the_order_of_its_file(tmp_path, caplog):
    (tmp_path / "steam-200k.csv").write_text(
        '5,"Doom, II",purchase,1.0,0\n5,"Doom, II",play,27.3,0\n5,Abe,purchase,1.0,0\n'
    )
    log, catalog = steam.load("200k", tmp_path)
    assert [event[:2] for event in events_of(log)] == [(5, "Doom, II"), (5, "Doom, II"), (5, "Abe")]
    assert log.order_E.tolist() == [0, 1, 2]
    assert log.value_E.tolist() == pytest.approx([1.0, 27.3, 1.0])
    assert log.kinds == ("play", "purchase")
    assert catalog.titles == ["Abe", "Doom, II"]
    assert "the order of the file is used and means nothing" in caplog.text
    (tmp_path / "steam-200k.csv").write_text("5,0042,purchase,1.0,0\n")
    assert steam.load("200k", tmp_path)[1].titles == ["0042"]
    with pytest.raises(DataError, match=r"no steam-200k\.csv in None: get it from https://www\.kaggle\.com"):
        steam.load("200k")


def test_retailrocket(tmp_path, caplog):
    rows = [
        "5000,1,view,7,",
        "6000,1,addtocart,7,",
        "7999,1,transaction,7,31",
        "7999,1,transaction,8,31",
        "9000,2,view,9,",
    ]
    header = "timestamp,visitorid,event,itemid,transactionid\n"
    (tmp_path / "events.csv").write_text(header + "\n".join(rows) + "\n")
    properties = [["1000,7,categoryid,11", "9000,7,categoryid,12"], ["3000,7,categoryid,13", "3000,8,790,n5.000"]]
    for number, part in enumerate(properties, start=1):
        text = "timestamp,itemid,property,value\n" + "\n".join(part) + "\n"
        (tmp_path / f"item_properties_part{number}.csv").write_text(text)
    log, catalog = retailrocket.load(folder=tmp_path)
    assert [event[:3] for event in events_of(log)] == [(1, 7, 5), (1, 7, 6), (1, 7, 7), (1, 8, 7), (2, 9, 9)]
    assert log.kinds == ("addtocart", "transaction", "view")
    assert log.positive_kinds == ("transaction",)
    assert log.session_E.tolist() == [-1, -1, 0, 0, -1]
    assert catalog.texts == ["Categories: 12", "", ""]
    assert "RetailRocket: CC BY-NC-SA 4.0" in caplog.text
    assert retailrocket.load(folder=tmp_path, positive_kinds=["view"])[0].positive_kinds == ("view",)


@pytest.mark.parametrize("module", [movielens, movietweetings, steam, yelp, retailrocket])
def test_unknown_names_are_refused_with_the_known_ones(module):
    source = module.__name__.rpartition(".")[2]
    with pytest.raises(DataError, match=rf"{source} has no data set 'none': choose one of {', '.join(module.NAMES)}"):
        sources.load(f"{source}/none")


def test_unknown_sources_are_refused_with_the_known_ones():
    with pytest.raises(
        DataError, match=r"there is no source 'netflix': choose one of amazon, movielens, movietweetings,"
    ):
        sources.load("netflix/prize")
