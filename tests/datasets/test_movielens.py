import pytest

from torchrec.datasets.movielens import movielens_20m, movielens_25m

pytestmark = pytest.mark.once


@pytest.fixture
def root(tmp_path):
    (tmp_path / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n1,2,3.5,111\n2,3,4.0,222\n"
    )
    (tmp_path / "movies.csv").write_text(
        'movieId,title,genres\n2,"Amélie, the one",Comedy|Drama\n3,War,War\n', encoding="utf-8"
    )
    return tmp_path


@pytest.mark.parametrize("movielens", [movielens_20m, movielens_25m])
def test_ratings(root, movielens):
    assert list(movielens(str(root))) == [
        {"userId": 1, "movieId": 2, "rating": 3.5, "timestamp": 111},
        {"userId": 2, "movieId": 3, "rating": 4.0, "timestamp": 222},
    ]


def test_ratings_with_their_movies(root):
    first, second = movielens_25m(str(root), include_movies_data=True)
    assert first["title"] == "Amélie, the one"
    assert second["genres"] == "War"


def test_rows_as_they_are(root):
    rows = list(movielens_20m(str(root), include_movies_data=True, row_mapper=None))
    assert rows[1] == ["2", "3", "4.0", "222", "War", "War"]


def test_what_does_not_convert_is_zero(root):
    (root / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,x,,9\n")
    assert list(movielens_20m(str(root))) == [
        {"userId": 1, "movieId": 0, "rating": 0.0, "timestamp": 9}
    ]


def test_an_unknown_movie_is_an_error(root):
    (root / "movies.csv").write_text("movieId,title,genres\n2,A,B\n")
    with pytest.raises(ValueError, match=r"Movie 3 of ratings.csv should be in movies.csv"):
        list(movielens_20m(str(root), include_movies_data=True))
