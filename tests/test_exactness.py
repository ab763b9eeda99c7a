"""Figures beyond 2^53 - 1: sums, differences and products are exact, whatever they are made of."""

from books import Book

MINUTE_MS = 60_000
# A candle that no trade of today joins, in the layout of the hash `…:candles`.
OPEN_MS = 1_700_000_100_000


def store_candle(book: Book, interval: str, open_ms: int, volume: str) -> None:
    line = f"{open_ms} 100 104 99 101 {volume} 3"
    book.client.hset(book.stream_key("candles"), interval, line)


def trade(book: Book, quantity: str, price: str) -> None:
    assert book.limit("alice", "sell", quantity, price)["status"] == "open"
    assert book.limit("bob", "buy", quantity, price)["status"] == "filled"


def test_stored_candles_are_joined_to_the_last_digit(book: Book) -> None:
    store_candle(book, "1m", OPEN_MS + MINUTE_MS, "92233720368547.75809")
    store_candle(book, "5m", OPEN_MS, "100000000000000000000000000000.00000000000001")
    trade(book, "9007199254740991", "100")
    five = book.read("get_candles", interval="5m")["candles"]
    assert five[0]["volume"] == "100000000000000092233720368547.75809000000001"
    assert (five[0]["trades"], five[0]["high"], five[0]["low"]) == (6, "104", "99")


def test_a_stored_volume_that_is_no_decimal_text_refuses_no_trade(book: Book) -> None:
    """As one was written beyond 1e13 before such sums were exact."""
    store_candle(book, "1m", OPEN_MS, "-92233720368547.75808")
    store_candle(book, "5m", OPEN_MS, "-92233720368547.75808")
    trade(book, "7", "100")
    trade(book, "8", "100")
    assert book.read("get_candles", interval="1m")["candles"][-1]["volume"] == "15"
    assert book.read("get_ticker")["volume_24h"] == "15"
